"""gRPC clients of the ensemble, blocking and asyncio, over tritonclient's messages and stubs."""

from ensemble.client.asyncio import AsyncClient
from ensemble.client.blocking import Client
from ensemble.client.channel import DEFAULT_URL, Tls
from ensemble.client.knowledge_tracing import Prediction
from ensemble.client.protocol import Status
from ensemble.client.retry import STOPPING

__all__ = ["DEFAULT_URL", "STOPPING", "AsyncClient", "Client", "Prediction", "Status", "Tls"]
