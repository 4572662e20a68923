"""Sentences, pairs and volumes go the road of pictures: the same stages, files, registry and prediction."""

import gzip
import json

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from opinions import BAD, COMMON, GOOD

from convoy.data.shards import Shards
from convoy.data.vocabulary import Vocabulary
from convoy.errors import ConfigurationError, InputRefusedError
from convoy.files import read_sealed
from convoy.model.predictor import Predictor
from convoy.tracking import registry
from flows.serve.predict import predict
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.check import check
from stages.evaluate.entry import Evaluate
from stages.evaluate.evaluate import evaluate
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest
from stages.register.entry import Register
from stages.register.register import register
from stages.train.entry import Train
from stages.train.signatures import preset
from stages.train.train import train


def road(model, dataset, architecture, **entry):
    train(model, Train(**preset(architecture) | {"dataset": dataset, "architecture": architecture} | entry))
    evaluate(model, Evaluate(dataset=dataset))
    register(dataset, Register())


def files(workspace, dataset, model):
    folder = workspace / "data/evaluate" / dataset / model
    metrics = json.loads((folder / "metrics.json").read_text())
    name = metrics["metric"]
    common = {name, f"{name}_low", f"{name}_high", f"val_{name}", "val_loss", "baseline", "examples", "parameters"}
    assert common <= set(metrics)
    assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    table = pd.read_parquet(folder / "predictions.parquet")
    assert len(table) == metrics["examples"]
    decision = json.loads((workspace / "data/register" / dataset / "decision.json").read_text())
    assert decision["promoted"]
    assert registry.champion(dataset).tags["model"] == model
    return metrics, table, folder


def test_sentences(raw):
    ingest("opinions", Ingest(kind="text", near_duplicates=False))
    augment("opinions", Augment(copies=1, seed=0, misspell=0.3))
    sizes = {"embedding": 16, "maps": 8}
    road("words", "opinions", "text_cnn", sizes=sizes, epochs=10, learning_rate=0.01, ema=0.9, clip_norm=1.0)
    metrics, table, folder = files(raw, "opinions", "words")
    assert metrics["accuracy"] > 0.9
    assert metrics["auc"] > 0.95
    assert metrics["accuracy"] == (table["label"] == table["predicted"]).mean()
    errors = pd.read_csv(folder / "tables/errors.csv")
    assert len(errors) == (~table["correct"]).sum()
    assert errors["probability"].is_monotonic_decreasing
    ngrams = pd.read_csv(folder / "tables/ngrams.csv")
    for label, telling in (("good", GOOD), ("bad", BAD)):
        assert set(ngrams.loc[ngrams["class"] == label, "ngram"].iloc[0].split()) & set(telling)
    assert (folder / "plots/ngrams.png").stat().st_size > 5000

    predictor = Predictor.load(raw / "data/train/opinions/words")
    assert not any(len(word) > 3 and word[1:] in GOOD for word in predictor.vocabularies["text"].pieces)
    train_words = " ".join(Shards(raw / "data/ingest/opinions/train").column("text")).split()
    assert set(predictor.vocabularies["text"].pieces) == set(train_words)  # of the originals of the training split

    (raw / "in.txt").write_text("\ufeffGREAT story\n\nThe people who went home were awful\n")
    predict("opinions", raw / "in.txt", raw / "out.csv")
    out = pd.read_csv(raw / "out.csv")
    assert out["predicted"].tolist()[::2] == ["good", "bad"]
    assert out["reason"].tolist()[1] == "it is empty"
    pd.DataFrame({"text": ["dull", "fine"]}).to_parquet(raw / "in.parquet")
    predict("opinions", raw / "in.parquet", raw / "out.parquet")
    assert pd.read_parquet(raw / "out.parquet")["predicted"].tolist() == ["bad", "good"]
    with pytest.raises(InputRefusedError, match=r"is no .txt, .csv or .parquet"):
        predict("opinions", raw / "data", raw / "out.csv")


def test_pairs(raw):
    ingest("counts", Ingest(kind="translation", near_duplicates=False))
    augment("counts", Augment(copies=0, seed=0, subwords=80))
    sizes = {"width": 0.25, "encoder": 2, "decoder": 2}
    more = {"batch": 32, "learning_rate": 5e-3, "label_smoothing": 0.0, "sizes": sizes}
    entry = preset("conv_seq2seq") | {"dataset": "counts", "architecture": "conv_seq2seq"} | more
    train("counter", Train(**entry | {"epochs": 1}))
    trained = raw / "data/train/counts/counter"
    loss = Predictor.load(trained).loss(Shards(raw / "data/ingest/counts/val"))  # while it has much to learn
    assert loss == pytest.approx(pd.read_csv(trained / "history.csv")["val_loss"].iloc[-1], rel=1e-4)
    road("counter", "counts", "conv_seq2seq", epochs=12, **more)
    metrics, table, folder = files(raw, "counts", "counter")
    assert metrics["exact_match"] == (table["predicted"] == table["target"]).mean() > 0.9
    assert metrics["bleu"] > 90
    assert metrics["baseline"] < 20
    for name in ("chrf", "exact_match"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"] + 1e-9
    assert set(pd.read_csv(folder / "tables/slices.csv")["slice"]) == {"characters"}
    assert "tok:13a" in metrics["bleu_signature"]
    samples = pd.read_csv(folder / "tables/samples.csv")
    assert samples["chrf"].is_monotonic_increasing
    assert (folder / "plots/attention.png").stat().st_size > 5000

    pd.DataFrame({"source": ["seven three one", "two two two"]}).to_csv(raw / "in.csv", index=False)
    predict("counts", raw / "in.csv", raw / "out.csv")
    assert pd.read_csv(raw / "out.csv")["predicted"].tolist() == ["sept trois un", "deux deux deux"]
    served = mlflow.pyfunc.load_model("models:/counts@champion").predict(pd.DataFrame({"source": ["seven three one"]}))
    assert served["translation"].tolist() == ["sept trois un"]
    assert 0 < served["probability"][0] <= 1


def test_volumes(raw):
    ingest("blocks", Ingest(kind="volumes", size=(6, 6, 6), mode="grey"))
    augment("blocks", Augment(copies=2, seed=0, shift=1, noise=3, mirror=["depth"]))
    sizes = {"stem": "small", "depth": 10, "width": 0.1}
    road("shapes", "blocks", "conv3d", sizes=sizes, epochs=8, batch=16, learning_rate=0.01, ema=0.0)
    metrics, _, folder = files(raw, "blocks", "shapes")
    assert metrics["accuracy"] >= 0.8
    assert (folder / "plots/gradcam.png").stat().st_size > 5000
    predict("blocks", raw / "data/raw/blocks", raw / "out.csv")
    out = pd.read_csv(raw / "out.csv")
    assert len(out) == 60
    assert (out["path"].str.split("/").str[0] == out["predicted"]).mean() > 0.8
    volume = (raw / "data/raw/blocks" / out["path"][0]).read_bytes()
    served = mlflow.pyfunc.load_model("models:/blocks@champion").predict(pd.DataFrame({"volume": [volume]}))
    assert served["label"][0] == out["predicted"][0]
    assert served["probability"][0] == pytest.approx(out["probability"][0], abs=1e-4)


def test_an_architecture_for_other_data_is_refused_before_any_work(raw):
    ingest("opinions", Ingest(kind="text", near_duplicates=False))
    augment("opinions", Augment(copies=0, seed=0))
    message = r"lenet5 takes images, and opinions has text. For these: char_cnn, text_cnn"
    with pytest.raises(ConfigurationError, match=message):
        train("words", Train(dataset="opinions", architecture="lenet5", epochs=1, learning_rate=0.1))


@pytest.mark.parametrize(
    ("dataset", "architecture", "entry", "said"),
    [
        ("opinions", "text_cnn", {"tokens": "subwords", "min_count": 2}, "min_count = 2 would have no effect: augment"),
        ("opinions", "char_cnn", {"word_vectors": "v.txt"}, "word_vectors = v.txt would have no effect: they are for"),
        ("counts", "conv_seq2seq", {"class_weights": True}, "class_weights = True would have no effect: sentences"),
        ("blocks", "conv3d", {"length": 9}, "length = 9 would have no effect: volumes are not divided into tokens"),
    ],
)
def test_a_key_without_an_effect_is_refused_before_any_work(raw, dataset, architecture, entry, said):
    kinds = {"opinions": "text", "counts": "translation", "blocks": "volumes"}
    sections = COMMON | {"ingest": {dataset: {"kind": kinds[dataset]}}, "augment": {dataset: {"copies": 0, "seed": 0}}}
    sections["ingest"][dataset] |= {"size": [6, 6, 6], "mode": "grey"} if dataset == "blocks" else {}
    model = {"dataset": dataset, "architecture": architecture}
    for more, expected in (({}, None), (entry, said)):
        (raw / "params.yaml").write_text(json.dumps(sections | {"train": {"m": model | more}}))
        if expected is None:
            check()
            continue
        with pytest.raises(ConfigurationError, match=expected):
            check()


def test_few_texts_are_one_batch_and_long_ones_are_predicted_one_by_one(raw, monkeypatch):
    ingest("opinions", Ingest(kind="text", near_duplicates=False))
    augment("opinions", Augment(copies=0, seed=0))
    entry = preset("text_cnn") | {"dataset": "opinions", "architecture": "text_cnn", "batch": 1000, "epochs": 2}
    train("words", Train(**entry, sizes={"embedding": 8, "maps": 4}))
    predictor, val = Predictor.load(raw / "data/train/opinions/words"), Shards(raw / "data/ingest/opinions/val")
    found = predictor.probabilities(val)
    monkeypatch.setattr("convoy.model.predictor.SIGNS", 1)
    assert {len(rows) for rows in predictor._blocks(val, 512, "text")} == {1}
    np.testing.assert_allclose(predictor.probabilities(val), found, atol=1e-6)


def test_an_average_of_the_weights_is_what_is_validated_and_kept(raw):
    ingest("opinions", Ingest(kind="text", near_duplicates=False))
    augment("opinions", Augment(copies=0, seed=0))
    entry = preset("text_cnn") | {
        "dataset": "opinions",
        "architecture": "text_cnn",
        "sizes": {"embedding": 8, "maps": 4},
    }
    entry |= {"epochs": 3, "learning_rate": 0.02, "schedule": "constant"}
    for model, changes in (("plain", {}), ("words", {"ema": 0.95}), ("patient", {"ema": 0.95, "patience": 1})):
        train(model, Train(**entry | changes))
    val = Shards(raw / "data/ingest/opinions/val")
    scores = {}
    for model in ("plain", "words", "patient"):
        folder = raw / "data/train/opinions" / model
        found = Predictor.load(folder).probabilities(val)
        scores[model] = -np.log(found[np.arange(len(val)), val.column("label")]).mean()
        history = pd.read_csv(folder / "history.csv")
        expected = history["val_loss"].min() if model == "patient" else history["val_loss"].iloc[-1]
        assert scores[model] == pytest.approx(expected, rel=1e-4)
    assert scores["plain"] != pytest.approx(scores["words"], rel=1e-3)


def test_word_vectors_of_the_users_own_are_what_the_words_begin_with(raw, capsys):
    ingest("opinions", Ingest(kind="text", near_duplicates=False))
    augment("opinions", Augment(copies=0, seed=0))
    (raw / "vectors.txt").write_text("3 4\nGood 1 2 3 4\nzebra 5 6 7 8\nbad -1 -2 -3 -4\n")
    entry = preset("text_cnn") | {"dataset": "opinions", "architecture": "text_cnn", "epochs": 1}
    entry |= {"sizes": {"embedding": 4, "maps": 2, "static": True}, "word_vectors": raw / "vectors.txt"}
    train("words", Train(**entry))
    assert "vectors of 2 of " in capsys.readouterr().out
    folder = raw / "data/train/opinions/words"
    vectors = keras.saving.load_model(folder / "model.keras").get_layer("embedding").get_weights()[0]
    pieces = Vocabulary.from_json(json.loads((folder / "input.json").read_text())["text"]).pieces
    assert vectors[pieces["good"]].tolist() == [1, 2, 3, 4]
    assert vectors[pieces["bad"]].tolist() == [-1, -2, -3, -4]
    assert np.abs(vectors[pieces["film"]]).max() < 0.25
    for content, error, message in (
        ("good 1 2 nan 4\n", InputRefusedError, "line 1: a number is not finite"),
        (
            "good 1 2\n",
            ConfigurationError,
            r"line 1: a vector of 2 numbers; the embedding has 4 \(sizes: {embedding: 2}\)",
        ),
        ("good 1 2 x 4\n", InputRefusedError, "line 1: could not convert"),
        ("zebra 1 2 3 4\n", InputRefusedError, "has none of the"),
    ):
        (raw / "vectors.txt").write_text(content)
        with pytest.raises(error, match=message):
            train("words", Train(**entry))
    damaged = raw / "vectors.txt.gz"
    damaged.write_bytes(gzip.compress(b"good 1 2 3 4\n" * 1000)[:-9])
    with pytest.raises(InputRefusedError, match=r"vectors.txt.gz is damaged"):
        train("words", Train(**entry | {"word_vectors": damaged}))
    with pytest.raises(ConfigurationError, match="char_cnn has no word vectors"):
        train("words", Train(**entry | {"architecture": "char_cnn", "sizes": {}, "length": 123}))
    (raw / "vectors.txt").unlink()
    with pytest.raises(ConfigurationError, match=r"vectors.txt is missing"):
        train("words", Train(**entry))


def test_the_vocabulary_is_that_of_the_training_split(raw):
    ingest("opinions", Ingest(kind="text", near_duplicates=False))
    augment("opinions", Augment(copies=0, seed=0))
    words = dict(read_sealed(raw / "data/augment/opinions/about.json")["vocabulary"]["text"]["words"])
    test = set(" ".join(Shards(raw / "data/ingest/opinions/test").column("text")).split())
    trained = set(" ".join(Shards(raw / "data/ingest/opinions/train").column("text")).split())
    assert set(words) == trained
    assert test - trained  # the numbers at their ends
