"""Transformers' continuous batching on the same weights, prompts and device as the row over HTTP."""

import statistics

import torch
from gpu_measures import Bar, Measure, Setting, Tell
from gpu_server import LLAMA, asked_of_llama, over_http, prompts_of
from shapes import model_folder
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig


def continuous_batching(setting: Setting, tell: Tell) -> None:
    """Measure 32 x 128 tokens, and how many times as many the row over HTTP makes."""
    asked = asked_of_llama(setting)
    dtype = torch.bfloat16 if setting.device == "cuda" else torch.float32
    folder = model_folder(setting.shape(LLAMA))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="paged|sdpa")
    model = model.to(setting.device).eval()
    generation = GenerationConfig(max_new_tokens=asked.new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    by_memory = ContinuousBatchingConfig()
    settings = by_memory if setting.device == "cuda" else ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=256)
    rates = []
    for number in range(2 if setting.quick else 3):
        prompts = prompts_of(setting, LLAMA, asked, number)
        outputs = model.generate_batch(prompts, generation, settings, record_timestamps=True)
        made = sum(len(output.generated_tokens) for output in outputs.values())
        if made != asked.streams * asked.new_tokens:
            raise RuntimeError(f"transformers made {made} tokens of {asked.streams * asked.new_tokens}")
        stamps = [stamp for output in outputs.values() for stamp in output.timestamps]
        created = min(output.created_time for output in outputs.values())
        rates.append(made / (max(stamps) - created))
    rate = statistics.median(rates[1:])
    tell(Measure("transformers' continuous batching, the same", rate, "tok/s"))
    ours = setting.seen.get(over_http(LLAMA, asked))
    if ours is not None:
        tell(Measure("over HTTP ÷ transformers' continuous batching", ours / rate, "x", Bar("≥", 3.0)))
