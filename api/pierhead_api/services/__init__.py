"""What the API does, below the transport: plain coroutines that REST calls, and gRPC can.

They take what a client sends as plain data and answer in Vertex AI's wire form, or raise an ApiError.
"""

from pierhead_api.services.aiplatform import AiPlatformService
from pierhead_api.services.endpoints import EndpointService
from pierhead_api.services.jobs import JobService
from pierhead_api.services.models import ModelService
from pierhead_api.services.operations import OperationService

__all__ = ["AiPlatformService", "EndpointService", "JobService", "ModelService", "OperationService"]
