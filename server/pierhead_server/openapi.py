"""The description of the routes, as OpenAPI 3.1: what is true of every model. What an instance is, the model says."""

from collections.abc import Mapping

from pierhead_server.signature import DATATYPES

Schema = dict[str, object]

_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"  # a PNG of one

_NAME: Schema = {"type": "string", "minLength": 1, "pattern": "^[^/:?#]+$"}

_GOOGLE_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "status"],
            "properties": {
                "code": {"type": "integer"},
                "message": {"type": "string"},
                "status": {"type": "string"},
            },
        }
    },
}
_PLAIN_ERROR: Schema = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}

_PREDICTIONS: Schema = {"type": "array", "items": {}, "description": "One for each instance, in the same order."}
_VERTEX_FIELDS = ("deployedModelId", "model", "modelDisplayName", "modelVersionId")

_ERRORS = {
    400: "The request is wrong; the message names the field and the fix.",
    404: "No such path.",
    408: "The body came too slowly.",
    413: "The body is over the limit.",
    415: "The body is compressed by another algorithm than gzip.",
    429: "The queue is full, or requests take as many bytes as they may; Retry-After says when to try again.",
    500: "The model, or its process, failed on this request.",
    503: "No model is loaded.",
    504: "The model took too long.",
}
_OF_A_PREDICTION = tuple(_ERRORS)
_OF_A_PROBE = (400, 429, 500, 503, 504)


def describe_api(version: str, *, max_instances: int) -> Schema:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pierhead model server", "version": version},
        "paths": {**_predictions(), **_descriptions()},
        "components": {
            "schemas": {
                "GoogleError": _GOOGLE_ERROR,
                "PlainError": _PLAIN_ERROR,
                "PredictRequest": _predict_request(max_instances),
                "PredictResponse": _object({"predictions": _PREDICTIONS}),
                "VertexPredictResponse": _object(
                    {"predictions": _PREDICTIONS, **{name: {"type": "string"} for name in _VERTEX_FIELDS}}
                ),
                "InferRequest": _infer_request(),
                "InferResponse": _infer_response(),
            }
        },
    }


def _object(properties: Mapping[str, object], optional: Mapping[str, object] | None = None) -> Schema:
    return {"type": "object", "required": list(properties), "properties": {**properties, **(optional or {})}}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _predict_request(max_instances: int) -> Schema:
    return {
        "type": "object",
        "required": ["instances"],
        "properties": {
            "instances": {
                "type": "array",
                "minItems": 1,
                "maxItems": max_instances,
                "items": {},
                "description": 'What the model takes: a picture, number, list, text or object. {"b64"} holds bytes.',
            },
            "parameters": {
                "description": "Of an image classifier: confidenceThreshold (0 to 1) and maxPredictions (at least 1)."
            },
            "signature_name": {"description": "Of TensorFlow's clients: not looked at."},
        },
        "additionalProperties": True,
        "example": {"instances": [{"b64": _PIXEL}], "parameters": {"maxPredictions": 3}},
    }


def _infer_request() -> Schema:
    parameters: Schema = {"type": ["object", "null"], "not": {"required": ["shared_memory_region"]}}
    tensor: Schema = {
        **_object(
            {
                "name": {"type": "string"},
                "shape": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 1},
                    "minItems": 1,
                    "maxItems": 32,
                    "description": "The batch first.",
                },
                "datatype": {"enum": list(DATATYPES.values())},
            },
            {"parameters": parameters, "data": {"type": "array", "description": "Flat, or nested as the shape is."}},
        ),
        "additionalProperties": False,
    }
    output: Schema = {
        **_object({"name": {"type": "string"}}, {"parameters": parameters}),
        "additionalProperties": False,
    }
    return {
        **_object(
            {"inputs": {"type": "array", "minItems": 1, "items": tensor}},
            {
                "id": {"type": ["string", "null"]},
                "model_name": {"description": "Not looked at: the path has chosen the model."},
                "model_version": {"description": "The same."},
                "parameters": parameters,
                "outputs": {"type": ["array", "null"], "items": output},
            },
        ),
        "additionalProperties": False,
        "example": {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [_PIXEL]}]},
    }


def _infer_response() -> Schema:
    tensor = _object(
        {
            "name": {"type": "string"},
            "datatype": {"enum": list(DATATYPES.values())},
            "shape": {"type": "array", "items": {"type": "integer"}},
        },
        {"data": {"type": "array"}, "parameters": {"type": "object"}},
    )
    return _object(
        {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "outputs": {"type": "array", "items": tensor},
        },
        {"id": {"type": "string"}},
    )


def _predictions() -> Schema:
    vertex = "/v1/projects/{project}/locations/{location}/endpoints/{endpoint}"
    ai_platform = "/v1/projects/{project}/models/{model}"
    body = {"application/json": {"schema": _reference("PredictRequest")}}
    binary: Schema = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
    raw_headers = {
        name: {"schema": {"type": "string"}} for name in ("X-Vertex-AI-Deployed-Model-Id", "X-Vertex-AI-Model")
    }
    plain = {"application/json": {"schema": _reference("PredictResponse")}}
    tensors = {
        "application/json": {"schema": _reference("InferResponse")},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    }
    infer_body = {"application/json": {"schema": _reference("InferRequest")}, "application/octet-stream": binary}
    header_length: Schema = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": "How much of the body is JSON; tensors in binary form follow it. At 0 all is one input's data.",
    }
    vertex_answer = {"application/json": {"schema": _reference("VertexPredictResponse")}}
    paths: Schema = {
        f"{vertex}:predict": _post(
            f"{vertex}:predict", "Vertex AI's predict", body, _answer(vertex_answer), "GoogleError"
        ),
        f"{vertex}:rawPredict": _post(
            f"{vertex}:rawPredict",
            "Vertex AI's rawPredict; a body of another type than JSON is one instance, and httpBody may wrap either",
            {**body, "application/octet-stream": binary, "image/*": binary},
            {**_answer(plain), "headers": raw_headers},
            "GoogleError",
        ),
    }
    for path in (f"{ai_platform}:predict", f"{ai_platform}/versions/{{version}}:predict", "/v1/models/{model}:predict"):
        name = "KServe V1's predict" if path.startswith("/v1/models") else "AI Platform's predict"
        paths[path] = _post(path, name, body, _answer(plain), "PlainError")
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        item = _post(path, "The Open Inference Protocol's infer", infer_body, _answer(tensors), "PlainError")
        paths[path] = {**item, "parameters": [*_path_parameters(path), header_length]}
    errors = {str(code): _error(code, "GoogleError") for code in _OF_A_PROBE}
    probe = "A prediction of the model's own sample; a predictor without one answers none"
    paths["/v1/probe"] = {"post": _operation(probe, {"200": _answer(plain), **errors})}
    return paths


def _descriptions() -> Schema:
    ready = _object({"ready": {"const": True}})
    named = _object({"name": {"type": "string"}, "ready": {"const": True}})
    status = _object({"status": {"const": "ok"}})
    strings: Schema = {"type": "array", "items": {"type": "string"}}
    server = _object({"name": {"type": "string"}, "version": {"type": "string"}, "extensions": strings})
    spec = _object(
        {
            "name": {"type": "string"},
            "datatype": {"enum": list(DATATYPES.values())},
            "shape": {"type": "array", "items": {"type": "integer"}},
        }
    )
    specs: Schema = {"type": "array", "items": spec}
    model = _object(
        {
            "name": {"type": "string"},
            "versions": strings,
            "platform": {"type": "string"},
            "inputs": specs,
            "outputs": specs,
        },
        {"parameters": _object({}, {"form_reason": {"type": "string"}})},
    )
    oip = "/v2/models/{model}"
    return {
        "/healthz": _get("/healthz", "Alive", status, "GoogleError"),
        "/readyz": _get("/readyz", "Ready to predict", status, "GoogleError"),
        "/metrics": {"get": _operation("Prometheus' metrics", {"200": _answer({"text/plain": {}})})},
        "/openapi.json": _get("/openapi.json", "This document", {"type": "object"}, None),
        "/": _get("/", "KServe V1's liveness", _object({"status": {"const": "alive"}}), "GoogleError"),
        "/v1/models": _get("/v1/models", "KServe V1's list of models", _object({"models": strings}), None),
        "/v1/models/{model}": _get("/v1/models/{model}", "KServe V1's readiness of the model", named, "PlainError"),
        "/v2": _get("/v2", "What this server is", server, None),
        "/v2/health/live": _get("/v2/health/live", "Alive", _object({"live": {"const": True}}), "PlainError"),
        "/v2/health/ready": _get("/v2/health/ready", "Ready to predict", ready, "PlainError"),
        oip: _get(oip, "The model's inputs and outputs", model, "PlainError"),
        f"{oip}/ready": _get(f"{oip}/ready", "Whether the model is ready", named, "PlainError"),
        f"{oip}/versions/{{version}}": _get(
            f"{oip}/versions/{{version}}", "The model's inputs and outputs", model, "PlainError"
        ),
        f"{oip}/versions/{{version}}/ready": _get(
            f"{oip}/versions/{{version}}/ready", "Whether the model is ready", named, "PlainError"
        ),
    }


def _path_parameters(path: str) -> list[Schema]:
    names = [part.partition("}")[0] for part in path.split("{")[1:]]
    return [{"name": name, "in": "path", "required": True, "schema": _NAME} for name in names]


def _operation(summary: str, responses: Mapping[str, object]) -> Schema:
    return {"summary": summary, "responses": dict(responses)}


def _answer(content: Mapping[str, object]) -> Schema:
    return {"description": "The answer.", "content": dict(content)}


def _error(code: int, schema: str) -> Schema:
    answer: Schema = {
        "description": _ERRORS[code],
        "content": {"application/json": {"schema": _reference(schema)}},
    }
    if code == 429:
        answer["headers"] = {"Retry-After": {"required": True, "schema": {"type": "integer"}}}
    return answer


def _get(path: str, summary: str, schema: Schema, error: str | None) -> Schema:
    """A description; those of the model may be unavailable."""
    responses: Schema = {"200": _answer({"application/json": {"schema": schema}})}
    if error:
        responses["503"] = _error(503, error)
    if "{" in path:
        responses["404"] = _error(404, "PlainError")
    return {"parameters": _path_parameters(path), "get": _operation(summary, responses)}


def _post(path: str, summary: str, content: Mapping[str, object], answer: Schema, error: str) -> Schema:
    """A prediction."""
    responses = {"200": answer, **{str(code): _error(code, error) for code in _OF_A_PREDICTION}}
    if path.startswith("/v1/projects/"):
        responses["404"] = _error(404, "GoogleError")
    body: Schema = {"required": True, "content": dict(content)}
    return {"parameters": _path_parameters(path), "post": {**_operation(summary, responses), "requestBody": body}}
