"""The rules for image samples: the image can be decoded, its class is one, its json is its own."""

import io
import json
from dataclasses import dataclass

import PIL.Image

from pipeline.images import jpeg
from pipeline.verify_shard import Findings, StoredSample

RULES = {
    "image": "the image is whole, of the format of its extension, in RGB or grey of 8 bits",
    "class": "cls is the index of a class of the manifest",
    "caption": "txt is UTF-8",
    "metadata": "json is an object with the width and height of the image",
}
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
MODES = ("RGB", "L")
"""What the loader brings to three channels without a rule of its own."""
PIL.Image.MAX_IMAGE_PIXELS = None  # the build had a limit, and it may have been above Pillow's


@dataclass(frozen=True, slots=True)
class ImageRules:
    """What the manifest says of every sample."""

    num_classes: int
    """Indices are below it; 0 where the images have no class."""
    extensions: tuple[str, ...] = ()
    """Those of the first sample: the corpus decides what lies beside an image."""

    def check(
        self, samples: list[StoredSample], tar: memoryview, name: str, findings: Findings
    ) -> list[int]:
        """Check the samples of one shard; images have no tokens."""
        for sample in samples:
            where = f"{name}: {sample.key}"
            contents = sample.contents(tar)
            if "json" not in contents or len(set(contents) & set(FORMATS)) != 1:
                wanted = f"one of {', '.join(FORMATS)}, and json"
                findings.add("image", where, f"has {', '.join(contents)}; must have {wanted}")
                continue
            size = self._check_image(contents, where, findings)
            _check_metadata(contents["json"], size, where, findings)
            if "cls" in contents:
                self._check_class(contents["cls"], where, findings)
            if "txt" in contents:
                _check_caption(contents["txt"], where, findings)
        return [0] * len(samples)

    def _check_image(
        self, contents: dict[str, memoryview], where: str, findings: Findings
    ) -> tuple[int, int] | None:
        """Width and height of the image, or None where it is damaged."""
        findings.checked["image"] += 1
        extension = next(one for one in FORMATS if one in contents)
        try:
            opened = _load(bytes(contents[extension]), FORMATS[extension])
        except Exception as error:  # noqa: BLE001 - a decoder raises what it likes
            message = " ".join(f"{type(error).__name__}: {error}".split())
            findings.add("image", where, f"{extension}: {message}")
            return None
        if opened.mode not in MODES:
            message = f"pixels of mode {opened.mode}; RGB or grey of 8 bits (L) is allowed"
            findings.add("image", where, f"{extension}: {message}")
        return opened.size

    def _check_class(self, content: memoryview, where: str, findings: Findings) -> None:
        findings.checked["class"] += 1
        text = bytes(content[:20])
        if not text.isdigit() or str(int(text)).encode() != bytes(content):
            findings.add("class", where, f"cls: {text!r} is no index")
        elif int(text) >= self.num_classes:
            findings.add("class", where, f"cls: {int(text)} of {self.num_classes} classes")


def _load(content: bytes, format_name: str) -> PIL.Image.Image:
    """Raises whatever decoders raise for what is damaged, by the build's own rule for a JPEG."""
    opened = PIL.Image.open(io.BytesIO(content), formats=[format_name])
    opened.load()
    if format_name == "JPEG" and (fault := jpeg.find_damage(content)):
        raise OSError(fault)
    return opened


def _check_caption(content: memoryview, where: str, findings: Findings) -> None:
    findings.checked["caption"] += 1
    try:
        bytes(content).decode("utf-8")
    except UnicodeDecodeError as error:
        findings.add("caption", where, f"txt: {error}")


def _check_metadata(
    content: memoryview, size: tuple[int, int] | None, where: str, findings: Findings
) -> None:
    findings.checked["metadata"] += 1
    try:
        tree = json.loads(bytes(content))
    except (ValueError, RecursionError) as error:
        findings.add("metadata", where, f"json: {error}")
        return
    if not isinstance(tree, dict):
        findings.add("metadata", where, "json: is no object")
    elif size is not None and (tree.get("width"), tree.get("height")) != size:
        found = f"{tree.get('width')} x {tree.get('height')}"
        message = f"json: says {found} pixels, the image has {size[0]} x {size[1]}"
        findings.add("metadata", where, message)
