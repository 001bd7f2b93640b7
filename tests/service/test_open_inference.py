"""The Open Inference Protocol under `/v2`: by hand, and by tritonclient as it comes."""

import base64
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from models import artifact
from models.decode import decode
from tests import running
from tests.artifacts import CLASSES
from tests.pictures import noise
from tests.running import Service, predictions

INFER = "/v2/models/test/infer"
SIZE = 32


def asked(service: Service, document: object, tail: bytes = b"", path: str = INFER, **more: str) -> requests.Response:
    """An inference request: JSON, and raw tensors where there are any."""
    head = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if tail else {}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    return requests.post(service.url + path, data=head + tail, headers=headers, timeout=60)


def images(*bodies: bytes, **more: Any) -> dict[str, Any]:
    """An inference request for encoded images."""
    data = [base64.b64encode(body).decode() for body in bodies]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(bodies)], "data": data}], **more}


def outputs(reply: requests.Response) -> dict[str, dict[str, Any]]:
    """The outputs of a reply in JSON, by name."""
    assert reply.status_code == 200, reply.text
    return {output["name"]: output for output in reply.json()["outputs"]}


def pixels_of(model: Path, body: bytes) -> torch.Tensor:
    """What the artifact makes of a picture before the network."""
    found: torch.Tensor = artifact.load(model).module.preprocess(decode(body, input_size=SIZE))
    return found


def refused(reply: requests.Response, status: int, code: str) -> str:
    """The text of a refusal that must have this status and code, as the protocol and as RFC 9457 have it."""
    document = reply.json()
    assert (status, code) == (reply.status_code, document["code"]), reply.text
    assert document["error"] == document["detail"]
    text: str = document["error"]
    return text


def test_images_in_json_get_what_predict_answers(service: Service) -> None:
    bodies = [noise(seed, (70, 50), "JPEG") for seed in range(3)]
    found = outputs(asked(service, images(*bodies, id="mine")))

    assert {"probabilities": [3, 10], "class_index": [3], "class": [3]} == {
        name: output["shape"] for name, output in found.items()
    }
    assert {"probabilities": "FP32", "class_index": "INT64", "class": "BYTES"} == {
        name: output["datatype"] for name, output in found.items()
    }
    for number, body in enumerate(bodies):
        expected = predictions(service.post(body, "/predict?top_k=10"))
        row = found["probabilities"]["data"][10 * number : 10 * number + 10]
        assert [best["class"] for best in expected[:1]] == found["class"]["data"][number : number + 1]
        assert [best["index"] for best in expected[:1]] == found["class_index"]["data"][number : number + 1]
        assert sorted(row, reverse=True) == pytest.approx([best["probability"] for best in expected], abs=1e-5)
        assert row[expected[0]["index"]] == max(row)


def test_the_reply_names_model_version_and_id(service: Service, model: Path) -> None:
    version = artifact.load(model).manifest.version
    for path in (INFER, f"/v2/models/test/versions/{version}/infer"):
        document = asked(service, images(noise(), id="a b/c"), path=path).json()

        assert ("test", version, "a b/c") == (document["model_name"], document["model_version"], document["id"])
    assert "id" not in asked(service, images(noise())).json()


def test_pixels_get_what_their_image_gets(service: Service, model: Path) -> None:
    bodies = [noise(seed, (70, 50)) for seed in range(2)]
    expected = outputs(asked(service, images(*bodies)))["probabilities"]["data"]
    pixels = torch.stack([pixels_of(model, body) for body in bodies])
    given = {"name": "pixels", "datatype": "UINT8", "shape": [2, 3, SIZE, SIZE]}
    raw = pixels.numpy().tobytes()
    replies = [
        asked(service, {"inputs": [given | {"data": pixels.tolist()}]}),
        asked(service, {"inputs": [given | {"data": pixels.flatten().tolist()}]}),
        asked(service, {"inputs": [given | {"parameters": {"binary_data_size": len(raw)}}]}, raw),
    ]

    for reply in replies:
        assert expected == pytest.approx(outputs(reply)["probabilities"]["data"], abs=1e-5)


def test_classification_gives_the_best_classes_as_score_index_and_label(service: Service) -> None:
    body = noise(4)
    best = predictions(service.post(body, "/predict?top_k=3"))
    wanted = [{"name": "probabilities", "parameters": {"classification": 3}}]
    (output,) = asked(service, images(body, outputs=wanted)).json()["outputs"]

    assert ("BYTES", [1, 3]) == (output["datatype"], output["shape"])
    assert [(one["index"], one["class"]) for one in best] == [
        (int(index), name) for _, index, name in (text.split(":") for text in output["data"])
    ]
    assert [one["probability"] for one in best] == pytest.approx(
        [float(text.split(":")[0]) for text in output["data"]], abs=1e-5
    )


def test_of_more_classes_than_there_are_all_are_given(service: Service) -> None:
    wanted = [{"name": "probabilities", "parameters": {"classification": 99}}]
    (output,) = asked(service, images(noise(), outputs=wanted)).json()["outputs"]

    assert [1, 10] == output["shape"]


def test_only_the_outputs_asked_for_are_given_in_their_order(service: Service) -> None:
    wanted = [{"name": "class"}, {"name": "class_index"}]

    assert ["class", "class_index"] == list(outputs(asked(service, images(noise(), outputs=wanted))))


def test_a_binary_reply_has_its_tensors_after_the_json(service: Service) -> None:
    body = noise(2)
    expected = outputs(asked(service, images(body)))
    reply = asked(service, images(body, parameters={"binary_data_output": True}))
    length = int(reply.headers["Inference-Header-Content-Length"])
    document, tail = json.loads(reply.content[:length]), reply.content[length:]
    sizes = [output["parameters"]["binary_data_size"] for output in document["outputs"]]
    name = expected["class"]["data"][0].encode()

    assert "application/octet-stream" == reply.headers["content-type"]
    assert [40, 8, 4 + len(name)] == sizes
    assert expected["probabilities"]["data"] == pytest.approx(struct.unpack("<10f", tail[:40]), abs=1e-6)
    assert (expected["class_index"]["data"][0], len(name)) == struct.unpack("<qI", tail[40:52])
    assert name == tail[52:]


IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}
PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [1, 3, SIZE, SIZE], "data": [0] * (3 * SIZE * SIZE)}


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    return [nested(depth - 1)] if depth else [0]


WRONG: dict[str, tuple[object, int, str]] = {
    "no object": ([], 400, "bad_json"),
    "no inputs": ({}, 400, "bad_json"),
    "two inputs": ({"inputs": [IMAGE, PIXELS]}, 400, "bad_json"),
    "inputs that are no list": ({"inputs": {}}, 400, "bad_json"),
    "an input that is no object": ({"inputs": ["image"]}, 400, "bad_json"),
    "an unknown input": ({"inputs": [IMAGE | {"name": "picture"}]}, 400, "bad_parameter"),
    "a name that is a list": ({"inputs": [IMAGE | {"name": []}]}, 400, "bad_parameter"),
    "another datatype": ({"inputs": [PIXELS | {"datatype": "FP32"}]}, 400, "bad_parameter"),
    "another shape": ({"inputs": [PIXELS | {"shape": [1, SIZE, SIZE, 3]}]}, 400, "bad_parameter"),
    "no shape": ({"inputs": [IMAGE | {"shape": []}]}, 400, "bad_parameter"),
    "no image": ({"inputs": [IMAGE | {"shape": [0], "data": []}]}, 400, "bad_parameter"),
    "a negative number of images": ({"inputs": [IMAGE | {"shape": [-1]}]}, 400, "bad_parameter"),
    "a true number of images": ({"inputs": [IMAGE | {"shape": [True]}]}, 400, "bad_parameter"),
    "fewer elements": ({"inputs": [IMAGE | {"shape": [2]}]}, 400, "bad_parameter"),
    "too many images": ({"inputs": [IMAGE | {"shape": [5], "data": ["AAAA"] * 5}]}, 413, "too_many_images"),
    "no data": ({"inputs": [{**IMAGE, "data": None}]}, 400, "bad_json"),
    "data that is no text": ({"inputs": [IMAGE | {"data": [1]}]}, 400, "bad_json"),
    "data that is no base64": ({"inputs": [IMAGE | {"data": ["?"]}]}, 400, "bad_json"),
    "an empty image": ({"inputs": [IMAGE | {"data": [""]}]}, 400, "empty"),
    "no image's bytes": ({"inputs": [IMAGE]}, 415, "unsupported_format"),
    "fewer pixels": ({"inputs": [PIXELS | {"data": [0]}]}, 400, "bad_parameter"),
    "pixels out of range": ({"inputs": [PIXELS | {"data": [256] * 3072}]}, 400, "bad_json"),
    "pixels that are no integers": ({"inputs": [PIXELS | {"data": [0.5] * 3072}]}, 400, "bad_json"),
    "pixels that are ragged": ({"inputs": [PIXELS | {"data": [[0], 1]}]}, 400, "bad_parameter"),
    "an unknown output": ({"inputs": [IMAGE], "outputs": [{"name": "logits"}]}, 400, "bad_parameter"),
    "an output that is no object": ({"inputs": [IMAGE], "outputs": ["class"]}, 400, "bad_parameter"),
    "an output twice": ({"inputs": [IMAGE], "outputs": [{"name": "class"}] * 2}, 400, "bad_parameter"),
    "more elements": ({"inputs": [IMAGE | {"data": [""] * 40_000}]}, 400, "bad_parameter"),
    "more pixels": ({"inputs": [PIXELS | {"data": [0] * 40_000}]}, 400, "bad_parameter"),
    "pixels that are nested deeply": ({"inputs": [PIXELS | {"data": nested(900)}]}, 400, "bad_json"),
    "a classification of a class": (
        {"inputs": [IMAGE], "outputs": [{"name": "class", "parameters": {"classification": 1}}]},
        *(400, "bad_parameter"),
    ),
    "a negative classification": (
        {"inputs": [IMAGE], "outputs": [{"name": "probabilities", "parameters": {"classification": -1}}]},
        *(400, "bad_parameter"),
    ),
    "an id that is no text": ({"inputs": [IMAGE], "id": 7}, 400, "bad_json"),
    "parameters that are no object": ({"inputs": [IMAGE], "parameters": []}, 400, "bad_json"),
    "a negative timeout": ({"inputs": [IMAGE], "parameters": {"timeout": -1}}, 400, "bad_parameter"),
    "a size without bytes": ({"inputs": [IMAGE | {"parameters": {"binary_data_size": 9}}]}, 400, "bad_parameter"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_request_is_told(service: Service, wrong: str) -> None:
    document, status, code = WRONG[wrong]

    refused(asked(service, document), status, code)


@pytest.mark.parametrize(
    ("tail", "size"),
    [(b"\1\0\0", 3), (b"\5\0\0\0abc", 7), (b"\0\0\0\0", 5), (b"\1\0\0\0a\1\0\0\0b", 10)],
    ids=["half a length", "half an element", "another size", "two elements"],
)
def test_a_binary_tensor_that_does_not_fit_is_refused(service: Service, tail: bytes, size: int) -> None:
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}

    refused(asked(service, {"inputs": [given]}, tail), 400, "bad_parameter")


@pytest.mark.parametrize("length", ["-1", "x", "99999", "9" * 30])
def test_a_header_length_beyond_the_body_is_refused(service: Service, length: str) -> None:
    reply = asked(service, images(noise()), Inference_Header_Content_Length=length)

    refused(reply, 400, "bad_parameter")


def test_bytes_that_are_no_json_are_refused(service: Service) -> None:
    for body in (b"{", b"\xff", b"[" * 100_000):
        refused(requests.post(service.url + INFER, data=body, timeout=60), 400, "bad_json")
    refused(requests.post(service.url + INFER, data=b"", timeout=60), 400, "empty")


def test_of_several_images_the_bad_one_is_named(service: Service) -> None:
    assert refused(asked(service, images(noise(), b"no image")), 415, "unsupported_format").startswith("Image 1: ")


def test_a_timeout_in_microseconds_is_kept(service: Service) -> None:
    refused(asked(service, images(noise(), parameters={"timeout": 1})), 504, "deadline")


@pytest.mark.parametrize(
    "path", ["/v2/models/other/infer", "/v2/models/test/versions/other/infer", "/v2/models/test/infer%0A"]
)
def test_another_model_or_version_is_not_found(service: Service, path: str) -> None:
    refused(asked(service, images(noise()), path=path), 404, "not_found")


def test_other_methods_are_refused(service: Service) -> None:
    reply = service.get(INFER)

    assert "POST" == reply.headers["allow"]
    refused(reply, 405, "method_not_allowed")


def test_metadata_tells_server_model_inputs_and_outputs(service: Service, model: Path) -> None:
    version = artifact.load(model).manifest.version
    metadata = service.get("/v2/models/test").json()

    assert {"name", "version", "extensions"} == service.get("/v2").json().keys()
    assert ("test", [version]) == (metadata["name"], metadata["versions"])
    assert metadata == service.get(f"/v2/models/test/versions/{version}").json()
    assert {"image": ["BYTES", [-1]], "pixels": ["UINT8", [-1, 3, SIZE, SIZE]]} == {
        tensor["name"]: [tensor["datatype"], tensor["shape"]] for tensor in metadata["inputs"]
    }
    assert ["probabilities", "class_index", "class"] == [tensor["name"] for tensor in metadata["outputs"]]


def test_requests_are_counted_under_two_labels(service: Service) -> None:
    def counted(route: str, status: int) -> float:
        return service.sample("darkroom_requests_total", route=route, status=str(status))

    before = counted("/v2/infer", 200), counted("/v2", 200), counted("/v2", 404)
    asked(service, images(noise()))
    service.get("/v2/health/ready")
    service.get("/v2/models/nobody")

    assert (before[0] + 1, before[1] + 1, before[2] + 1) == (
        counted("/v2/infer", 200),
        counted("/v2", 200),
        counted("/v2", 404),
    )


def test_inference_needs_the_key_and_metadata_does_not(model: Path) -> None:
    with running.serving(model, DARKROOM_API_KEYS="secret") as service:
        refused(asked(service, images(noise())), 401, "unauthorized")

        assert 200 == asked(service, images(noise()), X_API_Key="secret").status_code
        assert 200 == service.get("/v2/models/test").status_code


# tritonclient, unmodified


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(service.url.removeprefix("http://")) as made:
        yield made


def image_input(*bodies: bytes, binary: bool = True) -> Any:
    """As a user of tritonclient sends images; without `binary` as base64, for its JSON holds text only."""
    made = InferInput("image", [len(bodies)], "BYTES")
    elements = list(bodies) if binary else [base64.b64encode(body) for body in bodies]
    made.set_data_from_numpy(np.array(elements, dtype=np.object_), binary_data=binary)
    return made


def pixel_input(pixels: torch.Tensor, *, binary: bool) -> Any:
    made = InferInput("pixels", list(pixels.shape), "UINT8")
    made.set_data_from_numpy(pixels.numpy(), binary_data=binary)
    return made


def test_tritonclient_sees_server_and_model(client: InferenceServerClient, model: Path) -> None:
    version = artifact.load(model).manifest.version
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("test")
    assert client.is_model_ready("test", version)
    assert not client.is_model_ready("other")
    assert "darkroom" == client.get_server_metadata()["name"]
    assert [version] == client.get_model_metadata("test", version)["versions"]
    config = client.get_model_config("test")
    assert ["TYPE_STRING", "TYPE_UINT8"] == [one["data_type"] for one in config["input"]]
    assert [{"name": "test", "version": version, "state": "READY"}] == client.get_model_repository_index()


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritonclient_infers_from_images_and_from_pixels(
    client: InferenceServerClient, service: Service, model: Path, binary: bool
) -> None:
    bodies = [noise(seed, (70, 50)) for seed in range(2)]
    expected = outputs(asked(service, images(*bodies)))
    pixels = torch.stack([pixels_of(model, body) for body in bodies])
    wanted = [InferRequestedOutput(name, binary_data=binary) for name in ("probabilities", "class_index", "class")]
    for given in (image_input(*bodies, binary=binary), pixel_input(pixels, binary=binary)):
        for asking in (wanted, None):
            result = client.infer("test", [given], outputs=asking, request_id="seven")

            assert "seven" == result.get_response()["id"]
            np.testing.assert_allclose(
                expected["probabilities"]["data"], result.as_numpy("probabilities").flatten(), atol=1e-5
            )
            assert expected["class_index"]["data"] == result.as_numpy("class_index").tolist()
            names = [name.decode() if isinstance(name, bytes) else name for name in result.as_numpy("class")]
            assert expected["class"]["data"] == names


def test_tritonclient_classifies_and_infers_asynchronously(client: InferenceServerClient) -> None:
    wanted = [InferRequestedOutput("probabilities", class_count=2)]
    result = client.async_infer("test", [image_input(noise())], outputs=wanted).get_result()
    best = result.as_numpy("probabilities")

    assert (1, 2) == best.shape
    assert all(text.decode().split(":")[2] in CLASSES for text in best[0])


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an unknown model": (lambda client: client.infer("other", [image_input(noise())]), "alone"),
    "an unknown version": (lambda client: client.infer("test", [image_input(noise())], model_version="0"), "alone"),
    "a damaged image": (lambda client: client.infer("test", [image_input(noise()[:100])]), "damaged"),
    "a short timeout": (lambda client: client.infer("test", [image_input(noise())], timeout=1), "deadline"),
    "a compressed request": (
        lambda client: client.infer("test", [image_input(noise())], request_compression_algorithm="gzip"),
        "Content-Encoding",
    ),
    "statistics": (lambda client: client.get_inference_statistics("test"), "No such route"),
    "statistics of all": (lambda client: client.get_inference_statistics(), "alone"),
    "loading": (lambda client: client.load_model("test"), "No such route"),
    "unloading": (lambda client: client.unload_model("test"), "No such route"),
    "trace settings": (lambda client: client.get_trace_settings(), "No such route"),
    "changing trace settings": (lambda client: client.update_trace_settings(settings={}), "No such route"),
    "log settings": (lambda client: client.get_log_settings(), "No such route"),
    "changing log settings": (lambda client: client.update_log_settings({}), "No such route"),
    "shared memory": (lambda client: client.get_system_shared_memory_status(), "No such route"),
    "CUDA's shared memory": (lambda client: client.get_cuda_shared_memory_status(), "No such route"),
    "registering shared memory": (lambda client: client.register_system_shared_memory("a", "b", 1), "No such route"),
    "registering CUDA's": (lambda client: client.register_cuda_shared_memory("a", b"b", 0, 1), "No such route"),
    "forgetting shared memory": (lambda client: client.unregister_system_shared_memory(), "No such route"),
    "forgetting CUDA's": (lambda client: client.unregister_cuda_shared_memory(), "No such route"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_tritonclient_is_told_what_it_cannot_have(client: InferenceServerClient, wrong: str) -> None:
    call, told = REFUSED[wrong]

    with pytest.raises(InferenceServerException, match=told):
        call(client)
