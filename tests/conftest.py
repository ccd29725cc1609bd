"""Small models that the tests make themselves."""

from pathlib import Path

import pytest
import spacy
from spacy.training import Example


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    "A random transformer with mean pooling, saved to disk."
    st = pytest.importorskip("sentence_transformers")
    import torch
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
    ).save_pretrained(folder / "bert")
    body = Transformer(str(folder / "bert"), max_seq_length=64)
    st.SentenceTransformer(modules=[body, Pooling(16)], device="cpu").save(
        str(folder / "model")
    )
    return folder / "model"


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    "A tiny statistical NER, taught by heart that two titles are dates, and saved."
    nlp = spacy.blank("en")
    ner = nlp.add_pipe("ner")
    for label in ("DATE", "PERSON"):
        ner.add_label(label)
    taught = [
        ("Olden Days", [(0, 10, "DATE")]),
        ("Olden Days of Rome", [(0, 10, "DATE")]),
        ("Ada Lovelace", [(0, 12, "PERSON")]),
        ("Tea", []),
    ]
    examples = [Example.from_dict(nlp.make_doc(t), {"entities": e}) for t, e in taught]
    spacy.util.fix_random_seed(0)
    nlp.initialize(lambda: examples)
    for _ in range(60):
        nlp.update(examples, drop=0.0)
    path = tmp_path_factory.mktemp("models") / "tiny"
    nlp.to_disk(path)
    return path
