"""Trains the two small chat models of `examples/models` from scratch: a few minutes each, on the CPU."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from training.evaluation import accuracy_by_task, ask
from training.exams import held_out
from training.export import save
from training.recipes import RECIPES, Recipe
from training.trainer import Report, make_tokenizer, train
from transformers import AutoModelForCausalLM, AutoTokenizer

MODELS = Path(__file__).parent / "models"
EXAM_QUESTIONS = 1000
STEPS_PER_LINE = 50

console = Console()


def main() -> None:
    """Train the models asked for, save them and print how well they answer questions they never saw."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    for name in arguments.model or RECIPES:
        folder = arguments.out / name
        if not arguments.evaluate:
            make(RECIPES[name], folder)
        show_accuracy(name, folder)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python examples/train_models.py                            both models, into examples/models
  python examples/train_models.py --model abacus --out /tmp  one of them, into /tmp/abacus
  python examples/train_models.py --evaluate                 no training: only how well the models there answer""",
    )
    parser.add_argument("--model", action="append", choices=list(RECIPES), help="train this one only (default: all)")
    parser.add_argument(
        "--out", type=Path, default=MODELS, help="the folder that holds one folder per model (default: %(default)s)"
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="train nothing, only ask the models found in that folder"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with (default: %(default)s)")
    return parser.parse_args()


def make(recipe: Recipe, folder: Path) -> None:
    """Train one model, showing how it gets on, and save it."""
    tokenizer = make_tokenizer(recipe)
    wall, processor = time.perf_counter(), time.process_time()
    with progress_bar(recipe) as report:
        model = train(recipe, tokenizer, report)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    save(model, tokenizer, folder)
    console.print(f"{recipe.name}: {model.num_parameters():,} parameters, saved in {folder}")
    console.print(f"{recipe.name}: trained in {wall:.0f} s, {processor:.0f} CPU-seconds")


@contextmanager
def progress_bar(recipe: Recipe) -> Iterator[Report]:
    """A bar with loss and remaining time; in a log file, a line now and then instead."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    remaining, loss_column = TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.3f}")
    with Progress(*columns, remaining, loss_column, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"training {recipe.name}", total=recipe.steps, loss=float("nan"))

        def report(step: int, loss: float) -> None:
            progress.update(bar, completed=step, loss=loss)
            if not console.is_terminal and step % STEPS_PER_LINE == 0:
                console.print(f"training {recipe.name}: step {step} of {recipe.steps}, loss {loss:.3f}")

        yield report


def show_accuracy(name: str, folder: Path) -> None:
    """Print how often the saved model answers unseen questions right, computing in float32 and in bfloat16."""
    exam = held_out(name, EXAM_QUESTIONS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    columns = []
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        with console.status(f"asking {name} {len(exam)} unseen questions in {dtype}"):
            columns.append(accuracy_by_task(ask(model, tokenizer, exam)))
    table = Table("task", "questions", "float32", "bfloat16", title=f"{name}: right answers to unseen questions")
    for task in columns[0]:
        table.add_row(task, str(columns[0][task][1]), *(percent(*column[task]) for column in columns))
    table.add_row(
        "all", str(len(exam)), *(percent(sum(right for right, _ in column.values()), len(exam)) for column in columns)
    )
    console.print(table)


def percent(right: int, asked: int) -> str:
    """A share as it is shown in the table."""
    return f"{right / asked:.1%}"


if __name__ == "__main__":
    main()
