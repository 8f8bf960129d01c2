"""What goes with every instance, of the job's `modelParameters`. Pure."""

from collections.abc import Mapping

from pierhead_server.config import CustomPredictor, ModelConfig, TorchvisionModel
from pierhead_server.errors import InvalidArgumentError, SettingsInvalidError
from pierhead_server.protocol import parse_ranking_parameters


def make_arguments(config: ModelConfig, parameters: Mapping[str, object]) -> dict[str, object]:
    """What a model of this kind takes. Raises SettingsInvalidError for what it does not."""
    if isinstance(config, CustomPredictor):
        return dict(parameters)
    if config.labels is None and not isinstance(config, TorchvisionModel):
        if parameters:
            raise SettingsInvalidError(f"modelParameters: {', '.join(parameters)}: this model takes none")
        return {}
    arguments: dict[str, object] = {"parameters": dict(parameters)}
    try:
        parse_ranking_parameters(arguments)
    except InvalidArgumentError as error:
        raise SettingsInvalidError(f"modelParameters: {error}".replace("parameters.", "", 1)) from None
    return arguments
