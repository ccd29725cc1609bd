"""Find the culture in multilingual text: culture points by geometry, with the evidence for each.

The names below are what a notebook of yours needs; each is loaded when it is first used. Everything
else is in the packages, one floor above the other: core, models, ingest, mine, evidence, instruct,
train, align, collect, viz.
"""

# Written by hand: no notebook can be imported before this module is there.

__version__ = "0.1.0"

_HOME = {
    "CorpusError": "core.basics",
    "RunError": "core.basics",
    "Params": "core.runs",
    "read_record": "core.runs",
    "read_run": "core.runs",
    "load_encoder": "models.encoders",
    "Endpoint": "models.prompts",
    "download_wikipedia": "ingest.download",
    "ingest_source": "ingest.dumps",
    "mine_corpus": "mine.pipeline",
    "evaluate_run": "evidence.quality",
    "run_sweep": "evidence.sweep",
    "explain_entry": "evidence.explain",
    "explain_group": "evidence.explain",
    "synthesize_items": "instruct.synthesize",
    "synthesize_offline": "instruct.synthesize",
    "export_dataset": "instruct.export",
    "question_accuracy": "tasks.utils",
    "precision_at": "align.lexical",
    "rank_correlation": "align.lexical",
    "make_report": "viz.report",
    "make_atlas": "viz.atlas",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    "Load a public name from its module (PEP 562)."
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
