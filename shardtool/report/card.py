"""What the dataset says of itself to others: the Hugging Face card (README.md) and Croissant metadata.

Both are pure functions of dataset.json. What only the owner knows (licence, creator, name) is left open.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from typing import Any

from shardtool.index import Manifest
from shardtool.text import counted, plain, size_text

MARK = "# shardtool pack writes this file anew; delete this line, and it keeps what you write."
SPECIES_LISTED = 50
_PUNCTUATION = str.maketrans({mark: f"\\{mark}" for mark in string.punctuation})

# https://huggingface.co/docs/hub/datasets-cards: the size categories, by their upper ends
_SIZES = (
    *((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")),
    *((10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B")),
)
_SPLIT_URLS = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}

# The context of the Croissant 1.0 specification (https://docs.mlcommons.org/croissant/docs/croissant-spec.html)
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{
        name: f"cr:{name}"
        for name in (
            *("citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty"),
            *("fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField"),
            *("path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate"),
            *("separator", "source", "subField", "transform"),
        )
    },
}


def dataset_card(manifest: Manifest) -> str:
    """README.md: YAML that makes the folder a Hugging Face WebDataset, and a short page for people."""
    return "\n".join([*_front_matter(manifest), *_body(manifest)]) + "\n"


def _counts(manifest: Manifest) -> str:
    photos, rows = counted(manifest.samples(), "photo"), counted(manifest.taxonomy.rows, "class", "classes")
    return f"{photos} of {len(manifest.taxonomy.species):,} species and {rows} of species and disease"


def _front_matter(manifest: Manifest) -> Iterator[str]:
    photos = manifest.samples()
    size = next((name for end, name in _SIZES if photos < end), "n>1T")
    yield from ("---", MARK, "task_categories:", "- image-classification", "tags:", "- webdataset", "- image")
    yield from ("size_categories:", f"- {size}")
    yield from ("configs:", "- config_name: default", "  data_files:")
    for name in manifest.splits:  # a JSON string is a YAML string
        yield from (f"  - split: {json.dumps(name)}", f"    path: {json.dumps(f'{name}/*.tar')}")
    yield "---"


def _body(manifest: Manifest) -> Iterator[str]:
    yield f"""
# Photos by species and disease

{_counts(manifest)}, packed as WebDataset shards by {plain(manifest.tool)}.
`report.html` shows the classes, and what was refused and why.

Dataset digest (the same digest, the same data): `{manifest.digest}`

| split | photos | shards | size |
|---|---:|---:|---:|"""
    for name, shards in manifest.splits.items():
        size = size_text(manifest.bytes(name))
        yield f"| {markdown(name)} | {manifest.samples(name):,} | {len(shards):,} | {size} |"
    yield from ("", "## Label space", "", "| id | species | diseases | photos |", "|---:|---|---:|---:|")
    yield from _species_lines(manifest)
    yield _USE.replace("SPLIT", next(iter(manifest.splits)))


def _species_lines(manifest: Manifest) -> Iterator[str]:
    taxonomy = manifest.taxonomy
    for number, name in enumerate(taxonomy.species[:SPECIES_LISTED]):
        first, end = taxonomy.offsets[number : number + 2]
        photos = sum(sum(counts[first:end]) for counts in manifest.class_counts.values())
        yield f"| {number} | {markdown(name)} | {taxonomy.sizes[number]:,} | {photos:,} |"
    if len(taxonomy.species) > SPECIES_LISTED:
        yield f"\nThe first {SPECIES_LISTED} of {len(taxonomy.species):,} species."
    yield "\nThe names of all species and diseases, in the order of their ids, stand in `dataset.json`."


_USE = """
## Reading

A sample is `KEY.jpg` (an RGB JPEG), `KEY.cls` (the species id) and `KEY.json` (names and ids of species and
disease, and the path of the source photo). Beside every `shard-NNNNNN.tar` lies a Parquet sidecar with key,
offset, size, labels, width, height and CRC-32C of each photo.

```sh
shardtool info .
shardtool verify .
```

```python
import glob, webdataset
samples = webdataset.WebDataset(sorted(glob.glob("SPLIT/*.tar")), shardshuffle=False)
samples = samples.decode("pil", only=["jpg", "cls", "json"])  # without `only` it would run pickles

from datasets import load_dataset
samples = load_dataset("webdataset", data_files={"SPLIT": "SPLIT/*.tar"}, split="SPLIT", streaming=True)
```

`croissant.json` describes the same for tools that read [Croissant](https://mlcommons.org/croissant). The
format is specified in `docs/format.md` of the program that packed it.

## Licence

Unknown: the owner of the photos has to fill it in, here and as `license:` at the top.
"""


def markdown(text: str) -> str:
    """A name from outside as plain text for any place of a Markdown page, a table's cell included."""
    return plain(text).translate(_PUNCTUATION)


# --- Croissant -----------------------------------------------------------------------------------


def croissant(manifest: Manifest) -> dict[str, Any]:
    """Croissant 1.0 metadata (JSON-LD): the shards with SHA-256, and a record set for each split.

    A record of a split is key, image, species id and disease id; the record sets `species` and `diseases`
    name the ids. A name that is not UTF-8 has its bytes written as \\udcXX: JSON-LD tools refuse them raw.
    """
    splits = list(manifest.splits)
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "photos-by-species-and-disease",
        "description": f"{_counts(manifest)} in WebDataset shards. Dataset digest: {manifest.digest}",
        "distribution": [part for name in splits for part in _distribution(manifest, name)],
        "recordSet": [
            _split_names(splits),
            _species_names(manifest),
            _disease_names(manifest),
            *(_records(name) for name in splits),
        ],
    }


def _distribution(manifest: Manifest, split: str) -> Iterator[dict[str, Any]]:
    """The shards of a split, the photos in them, and the sidecars, which carry the labels."""
    paths = []
    for entry in manifest.splits[split]:
        paths.append(f"{split}/{entry.name}.tar")
        yield {
            "@type": "cr:FileObject",
            "@id": paths[-1],
            "name": paths[-1],
            "contentUrl": paths[-1],
            "contentSize": f"{entry.bytes} B",
            "encodingFormat": "application/x-tar",
            "sha256": entry.sha256,
        }
    photos = {
        "containedIn": [{"@id": path} for path in paths],
        "encodingFormat": "image/jpeg",
        "includes": "*.jpg",
    }
    sidecars = {"encodingFormat": "application/x-parquet", "includes": f"{split}/*.parquet"}
    for kind, value in (("photos", photos), ("sidecars", sidecars)):
        yield {"@type": "cr:FileSet", "@id": f"{split}-{kind}", "name": f"{split}-{kind}", **value}


def _records(split: str) -> dict[str, Any]:
    """One record a photo: the JPEG in the tar, joined by its key with its row in the sidecar."""
    photos, sidecars = ({"fileSet": {"@id": f"{split}-{kind}"}} for kind in ("photos", "sidecars"))
    # mlcroissant applies the expression twice, to KEY.jpg and then to KEY: it has to match both
    key = {**photos, "extract": {"fileProperty": "filename"}, "transform": {"regex": "^([^.]+)"}}
    image = {**photos, "extract": {"fileProperty": "content"}}
    species, disease = (
        {**sidecars, "extract": {"column": column}} for column in ("species_id", "disease_id")
    )
    sidecar_key = {**sidecars, "extract": {"column": "key"}}
    fields = [
        _field(split, "key", "sc:Text", source=key, references=sidecar_key),
        _field(split, "image", "sc:ImageObject", source=image),
        _field(split, "species", "sc:Integer", source=species, references={"field": {"@id": "species/id"}}),
        _field(split, "disease", "sc:Integer", source=disease),
    ]
    return _record_set(split, ["key"], fields)


def _split_names(splits: list[str]) -> dict[str, Any]:
    fields = [_field("splits", "name", "sc:Text"), _field("splits", "url", "sc:URL")]
    data = [{"splits/name": name, "splits/url": _SPLIT_URLS.get(name, "cr:Split")} for name in splits]
    return _record_set("splits", ["name"], fields, dataType="cr:Split", data=data)


def _species_names(manifest: Manifest) -> dict[str, Any]:
    fields = [_field("species", "id", "sc:Integer"), _field("species", "name", "sc:Text")]
    data = [
        {"species/id": number, "species/name": _unicode(name)}
        for number, name in enumerate(manifest.taxonomy.species)
    ]
    return _record_set("species", ["id"], fields, dataType="sc:Enumeration", data=data)


def _disease_names(manifest: Manifest) -> dict[str, Any]:
    fields = [_field("diseases", name, "sc:Integer") for name in ("species", "id")]
    data = [
        {"diseases/species": species, "diseases/id": number, "diseases/name": _unicode(name)}
        for species, names in enumerate(manifest.taxonomy.diseases)
        for number, name in enumerate(names)
    ]
    fields.append(_field("diseases", "name", "sc:Text"))
    return _record_set("diseases", ["species", "id"], fields, dataType="sc:Enumeration", data=data)


def _record_set(name: str, key: list[str], fields: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    keys = [{"@id": f"{name}/{part}"} for part in key]
    start = {"@type": "cr:RecordSet", "@id": name, "name": name}
    return {**start, "key": keys if len(keys) > 1 else keys[0], "field": fields, **more}


def _field(record_set: str, name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": f"{record_set}/{name}", "name": name, "dataType": kind, **more}


def _unicode(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
