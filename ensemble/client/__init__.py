"""gRPC clients of the ensemble, blocking and asyncio, over tritonclient's messages and stubs."""

from ensemble.client.asyncio import AsyncClient
from ensemble.client.blocking import Client
from ensemble.client.protocol import DEFAULT_URL, Prediction, Status, Tls
from ensemble.client.retry import STOPPING

__all__ = ["DEFAULT_URL", "STOPPING", "AsyncClient", "Client", "Prediction", "Status", "Tls"]
