"""The training loop: the same recipe gives the same weights on the same machine, whatever the clock says."""

import math
import random
from collections.abc import Callable

import torch
from torch.nn import functional
from training.batches import IGNORED, Batch, Writer, batches
from training.dialogues import Dialogue
from training.muon import Muon
from training.recipes import Model, Recipe
from training.tokenization import train_tokenizer
from transformers import PreTrainedTokenizerFast

DIALOGUES_FOR_TOKENIZER = 3000
WARM_UP_STEPS = 30
SLOWEST = 0.02
"""The learning rate of the last step, as a part of the highest."""

Report = Callable[[int, float], None]
"""Called with the number of steps done and the loss of the last one."""


def make_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """The recipe's tokenizer, trained on dialogues of its curriculum."""
    rng = random.Random(recipe.seed)
    curriculum = recipe.curriculum
    dialogues = (curriculum.practice(rng, curriculum.longest_talk) for _ in range(DIALOGUES_FOR_TOKENIZER))
    texts = (message[part] for dialogue in dialogues for message in dialogue.messages() for part in ("role", "content"))
    return train_tokenizer(recipe.pattern, recipe.chat, texts, recipe.vocabulary)


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, report: Report) -> Model:
    """A model trained from scratch in float32, its weights rounded to bfloat16 at the end."""
    torch.manual_seed(recipe.seed)
    torch.use_deterministic_algorithms(True)
    model = new_model(recipe, tokenizer)
    optimizers = make_optimizers(model, recipe)
    practice = Practice(recipe)
    stream = batches(Writer(tokenizer), practice.draw, recipe.tokens_per_step, practice.rng)
    for step in range(recipe.steps):
        practice.progress = step / recipe.steps
        loss = reply_loss(model, next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["highest"] * pace(step, recipe.steps)
            optimizer.step()
            optimizer.zero_grad()
        report(step + 1, loss.item())
    return model.eval().to(torch.bfloat16)


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Model:
    """An untrained float32 model whose layers change nothing yet, so that each token starts out as itself."""
    model = recipe.architecture(recipe.config(tokenizer))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
            elif "embed_tokens" in name:
                weight.mul_(0.5)
        model.model.norm.weight.fill_(0.2)
    return model


def make_optimizers(model: Model, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the layers, AdamW for embeddings, output layer and norms."""
    matrices = [weight for name, weight in model.named_parameters() if name.endswith("_proj.weight")]
    rest = [weight for name, weight in model.named_parameters() if not name.endswith("_proj.weight")]
    optimizers = (
        Muon(matrices, recipe.matrix_learning_rate, weight_decay=0.05),
        torch.optim.AdamW(rest, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["highest"] = group["lr"]
    return optimizers


class Practice:
    """Draws the dialogues to learn from: single questions at first, whole conversations later."""

    def __init__(self, recipe: Recipe) -> None:
        self.rng = random.Random(recipe.seed)
        self.progress = 0.0
        self._recipe = recipe

    def draw(self) -> Dialogue:
        """The next dialogue to learn from."""
        curriculum = self._recipe.curriculum
        longest = 1 if self.progress < self._recipe.single_questions else curriculum.longest_talk
        return curriculum.practice(self.rng, longest)


def pace(step: int, steps: int) -> float:
    """The part of the highest learning rate used at a step: linear warm-up, then half a cosine."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (SLOWEST + (1 - SLOWEST) * cosine)


def reply_loss(model: Model, batch: Batch) -> torch.Tensor:
    """Cross-entropy over the model's own replies; what precedes right padding never looks at it."""
    spoken = batch.targets != IGNORED
    hidden = model.model(input_ids=batch.ids).last_hidden_state[spoken]
    return functional.cross_entropy(model.lm_head(hidden), batch.targets[spoken])
