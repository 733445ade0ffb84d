"""The model card, rendered from manifests. It states what is known, and what is not known.

In: what the export stage found on disk about a model. Out: Markdown with Hugging Face's front matter. The dataset card
is the data stage's own (pipeline/pages/data_card.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from pipeline.corpus.text.intervals import beside
from pipeline.pages import html
from pipeline.pages.data_card import front_matter, licence_words, table
from pipeline.pages.private import public_names
from pipeline.storage.hub import is_hub_name

OF_THE_TEXT = "It repeats what its text holds, mistakes and prejudices included; read code of its before you run it."
BASE_MODEL_LIMITS = (
    "It continues text: it was not taught to follow instructions, to refuse or to be safe.",
    OF_THE_TEXT,
)
TUNED_LIMITS = ("It was tuned on a narrow set of examples and answers every other request too.", OF_THE_TEXT)
CODE_PROMPT, PROSE_PROMPT, QUESTION = "def add(", "Once upon a time", "What is a river?"
MODELFILE = "Modelfile"


@dataclass(frozen=True)
class Lineage:
    """The manifests behind a model, each None where the stage is not known; `hours`: device-hours by stage of its
    experiment's ledger; `price`: of one of them, None where the config names none; `account`: the data stage's
    `data.report.json`."""

    name: str
    parameters: int
    context_tokens: int
    data: Mapping[str, Any] | None = None
    init: Mapping[str, Any] | None = None
    pretrain: Mapping[str, Any] | None = None
    finetune: Mapping[str, Any] | None = None
    hours: Mapping[str, float] = field(default_factory=dict)
    price: float | None = None
    license: str | None = None
    account: Mapping[str, Any] | None = None
    base_model: str | None = None
    family: str = "phi"
    chat: bool = False  # whether it has a chat template


def model_card(lineage: Lineage, files: Sequence[Mapping[str, Any]] = ()) -> str:
    """`files`: further forms of the same weights, {path, kind, bytes}."""
    method = "grown and pretrained" if (lineage.init or {}).get("source") else "pretrained"
    origin = f", {method} with hornbook on one device" if lineage.pretrain else ""
    tuned = f", fine-tuned with hornbook ({lineage.finetune['method']})" if lineage.finetune else ""
    parts = [
        front_matter(
            {
                "library_name": "transformers",
                "pipeline_tag": "text-generation",
                "license": lineage.license,
                "base_model": lineage.base_model,
                "tags": ["hornbook", lineage.family],
                "model-index": _model_index(lineage),
            }
        ),
        f"# {lineage.name}\n\nA language model of the family {lineage.family}, with {lineage.parameters:,} parameters "
        f"and {lineage.context_tokens:,} tokens of trained context{origin}{tuned}.",
        f"## How to run it\n\n{_use(lineage, files)}",
        "## How it was made\n\n" + "\n".join(_steps(lineage)),
        _losses(lineage),
        _licences(lineage),
        _other_forms(files),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(lineage)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def for_hub(card: str, repository: str) -> str:
    """The card as it stands in a repository of the hub, where the GGUF files lie below the model."""
    for here, there in (
        ('name = "."  # this folder', f'name = "{repository}"'),
        ('"model": "."', f'"model": "{repository}"'),
        ("vllm serve .\n", f"vllm serve {repository}\n"),
        ("../gguf/", "gguf/"),
    ):
        card = card.replace(here, there)
    return card


def modelfile(gguf: str, context_tokens: int, end_of_text: str | None, template: str) -> str:
    """What `ollama create` reads, beside the GGUF file of that name. `template`: "none" (a base model continues its
    prompt), "ours" (the chat form of pipeline/tuning/data.py) or "other" (Ollama takes the GGUF file's own)."""
    go = {
        "none": "{{ .Prompt }}",
        "ours": '{{ range .Messages }}### {{ .Role }}\n{{ .Content }}{{ if eq .Role "assistant" }}'
        f"{end_of_text or ''}{{{{ end }}}}\n{{{{ end }}}}### assistant\n",
    }
    lines = [f"FROM ./{gguf}", f"PARAMETER num_ctx {context_tokens}"]
    lines += [f'PARAMETER stop "{end_of_text}"'] if end_of_text else []
    lines += [f'TEMPLATE """{go[template]}"""'] if template in go else []
    return "\n".join(lines) + "\n"


def _use(lineage: Lineage, files: Sequence[Mapping[str, Any]]) -> str:
    """How to run it. Tests of hornbook run what is for transformers and llama-cpp-python."""
    kinds = (lineage.account or {}).get("kinds", {})
    is_code = kinds.get("code", {}).get("tokens", 0) * 2 > sum(kind["tokens"] for kind in kinds.values())
    return html.render(
        "use.md",
        short=PurePath(lineage.name).name.lower(),
        chat=lineage.chat,
        prompt=QUESTION if lineage.chat else CODE_PROMPT if is_code else PROSE_PROMPT,
        gguf=chosen_gguf(files) if files else None,
        context_tokens=lineage.context_tokens,
    ).strip()


def chosen_gguf(files: Sequence[Mapping[str, Any]]) -> str:
    """The name of the GGUF file that the card and the Modelfile run: q8_0 where there is one, else the first."""
    return PurePath(next((f["path"] for f in files if f["kind"] == "q8_0"), files[0]["path"])).name


def _steps(lineage: Lineage) -> Iterable[str]:
    data, init, pretrain, finetune = lineage.data, lineage.init, lineage.pretrain, lineage.finetune
    if data:
        names = ", ".join(public_names(data["sources"]).values())
        yield f"- **Data** `{data['fingerprint']}`: {data['tokens']['train']:,} tokens from {names}"
    if init:
        yield f"- **Init** `{init['fingerprint']}`: {_init_words(init)}"
    if pretrain:
        yield (
            f"- **Pretraining** `{pretrain['fingerprint']}`: {pretrain['tokens_seen']:,} tokens in "
            f"{pretrain['steps']:,} steps, {pretrain['precision']}, on {pretrain['device']}; "
            + ("annealed" if pretrain["annealed"] else "**not annealed**: cut off before its learning rate decayed")
        )
    if finetune:
        yield (
            f"- **Fine-tuning** `{finetune['fingerprint']}`: {finetune['method']}, "
            f"{100 * finetune['trainable_share']:.2f}% of the parameters, {finetune['steps']:,} steps, "
            f"{finetune['gpu_hours']:.4f} device-hours"
        )
    if lineage.hours:
        spent = ", ".join(f"{stage} {hours:.4f}" for stage, hours in lineage.hours.items())
        total = sum(lineage.hours.values())
        cost = f", {total * lineage.price:.2f} USD at {lineage.price:g} an hour" if lineage.price else ""
        yield f"- **Device-hours**: {total:.4f} ({spent}){cost}"
    source_hours = (init or {}).get("source_gpu_hours")
    if source_hours:
        yield f"- The source that it grew from took {source_hours:.4f} device-hours more"
    if not (data or pretrain):
        yield "- Where these weights come from is not recorded here" + (
            f": they were taken from {lineage.base_model}" if lineage.base_model else ""
        )


def _init_words(init: Mapping[str, Any]) -> str:
    if not init.get("source"):
        return f"{init.get('method', 'random')} weights"
    kept = "the same function" if init.get("function_preserving") else "another function"
    before, after = init.get("source_bits_per_byte"), init.get("grown_bits_per_byte")
    measured = f", {before:.4f} to {after:.4f} bits per byte" if before is not None and after is not None else ""
    source = init["source"] if is_hub_name(init["source"]) else PurePath(init["source"]).name
    return f"grown from {source} by `{init['method']}` ({kept}{measured})"


def _losses(lineage: Lineage) -> str:
    pretrain, finetune = lineage.pretrain, lineage.finetune
    text = ""
    if pretrain and pretrain["bits_per_byte"]:
        before = pretrain.get("initial_bits_per_byte") or {}
        names = _public(lineage)
        rows = [
            (str(names.get(name, name)), f"{before[name]:.4f}" if name in before else "", f"{value:.4f}",
             beside(pretrain, name))
            for name, value in pretrain["bits_per_byte"].items()
        ]  # fmt: skip
        text = "## Losses\n\nBits per byte of held-out text, before and after pretraining.\n\n"
        text += table(("set", "before", "after", "95% interval over documents"), rows)
    if finetune and finetune.get("target"):
        target = finetune["target"]
        text += ("\n\n" if text else "## Losses\n\n") + (
            f"Target task ({target['name']}): {100 * target['before']:.1f}% before and {100 * target['after']:.1f}% "
            f"after tuning (standard error {100 * target['standard_error']:.1f} points, {target['items']} items)."
        )
    return text


def _licences(lineage: Lineage) -> str:
    if not lineage.data:
        return ""
    names = _public(lineage)
    rows = [
        (names[key], ", ".join(source.get("licenses") or filter(None, [source.get("license")])) or "unknown")
        for key, source in lineage.data["sources"].items()
    ]
    text = "## Licences of the text\n\n" + table(("source", "licences"), rows)
    if lineage.account:
        text += f"\n\n{licence_words(lineage.account['licence'], names)}\n\nWho wrote it: ATTRIBUTION.md."
    if lineage.base_model:
        text += f"\n\nIt began as {lineage.base_model}, whose own licence holds besides."
    return text


def _public(lineage: Lineage) -> dict[str, str]:
    """The card's name of each source, and of its validation set."""
    return public_names(lineage.data["sources"]) if lineage.data else {}


def _other_forms(files: Sequence[Mapping[str, Any]]) -> str:
    if not files:
        return ""
    rows = [(file["path"], file["kind"], f"{file['bytes'] / 1e6:.2f} MB") for file in files]
    return "## Other forms\n\n" + table(("file", "kind", "size"), rows)


def _limits(lineage: Lineage) -> list[str]:
    limits: list[str] = list(TUNED_LIMITS if lineage.finetune else BASE_MODEL_LIMITS)
    if lineage.pretrain:
        seen = lineage.pretrain["tokens_seen"] / lineage.parameters
        limits.append(f"It saw {seen:.2f} tokens per parameter; about 20 are compute-optimal.")
    return limits


def _model_index(lineage: Lineage) -> list[dict[str, Any]]:
    if not lineage.pretrain or lineage.finetune or not lineage.pretrain["bits_per_byte"]:
        return []  # a tuned model's own bits per byte on this text were not measured
    names, results = _public(lineage), []
    for source, value in lineage.pretrain["bits_per_byte"].items():
        name = names.get(source, source)
        results.append(
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": f"held-out {name}", "type": name},
                "metrics": [{"type": "bits_per_byte", "value": round(value, 4)}],
            }
        )
    return [{"name": lineage.name, "results": results}]
