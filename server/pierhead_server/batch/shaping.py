"""What of a line the model gets, and what the output calls it by: the job's `instanceConfig`, as of Vertex AI. Pure."""

from collections.abc import Mapping

from pierhead_server.batch.document import InputFormat, InstanceConfig
from pierhead_server.batch.errors import INVALID_ARGUMENT, LineError
from pierhead_server.errors import InternalError, describe_kind
from pierhead_server.protocol import encode_json

INSTANCE, KEY = "instance", "key"  # what stands beside a prediction in the output


def shape(value: object, config: InstanceConfig, form: InputFormat) -> object:
    """What the model gets of a parsed line. Raises LineError."""
    if config.instance_type == "array" and isinstance(value, list) and not config.names_fields:
        return value
    if config.instance_type is None and not config.names_fields:
        return value
    if not isinstance(value, dict):
        raise _refuse(f"must be an object, not {describe_kind(value)}: {_name_cause(config)}")
    if config.instance_type != "array":
        return {name: value[name] for name in _pick(value, config)}
    if form == "jsonl" and not config.included_fields:
        raise _refuse("an object's fields have no order: give instanceConfig.includedFields for an array")
    return [value[name] for name in _pick(value, config)]


def _pick(value: Mapping[str, object], config: InstanceConfig) -> list[str]:
    """The fields that the model gets, in their order."""
    missing = [name for name in config.included_fields if name not in value]
    if missing:
        raise _refuse(f"instanceConfig.includedFields: it has no field {missing[0]!r}")
    names = config.included_fields or (name for name in value if name not in config.excluded_fields)
    return [name for name in names if name != config.key_field]


def read_key(value: object, config: InstanceConfig) -> bytes:
    """The value of the key's field, as JSON. Raises LineError."""
    if not isinstance(value, dict) or config.key_field not in value:
        raise _refuse(f"instanceConfig.keyField: it has no field {config.key_field!r}")
    try:
        return encode_json(value[config.key_field])
    except InternalError as error:
        raise _refuse(f"instanceConfig.keyField: {error.__cause__}") from None


def _name_cause(config: InstanceConfig) -> str:
    fields = {
        "keyField": config.key_field,
        "includedFields": config.included_fields,
        "excludedFields": config.excluded_fields,
    }
    named = next((name for name, value in fields.items() if value), f"instanceType {config.instance_type}")
    return f"instanceConfig has {named}"


def _refuse(cause: str) -> LineError:
    return LineError(INVALID_ARGUMENT, f"the line: {cause}")
