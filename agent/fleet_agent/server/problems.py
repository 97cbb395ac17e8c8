"""Refusals and failures on the wire: a status, one line, and a serialized Problem in the trailing metadata."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, NoReturn

import grpc

from fleet_agent.problem import ProblemError
from fleet_proto.v1 import common_pb2

__all__ = ["PROBLEM_METADATA_KEY", "ProblemError", "ProblemInterceptor", "abort", "wrapped"]

PROBLEM_METADATA_KEY = "fleet-problem-bin"
_log = logging.getLogger(__name__)


async def abort(context: Any, error: ProblemError) -> NoReturn:
    """Ends the call with the error's status, its one line, and the Problem in "fleet-problem-bin"."""
    problem = common_pb2.Problem(code=error.code, message=error.message, remedy=error.remedy)
    line = " ".join(str(error).split())
    metadata = ((PROBLEM_METADATA_KEY, problem.SerializeToString()),)
    await context.abort(grpc.StatusCode[error.status], line, trailing_metadata=metadata)
    raise AssertionError("context.abort() returned")


async def _fail(context: Any, method: str, error: Exception) -> NoReturn:
    """A ProblemError as it is; anything else is a defect of ours: one line to the caller, the traceback to the log."""
    if isinstance(error, ProblemError):
        await abort(context, error)
    _log.error("%s failed", method, exc_info=error)
    summary = f"the agent failed at {method.rsplit('/', 1)[-1]}: {type(error).__name__}: {error}"
    remedy = "the agent's log has the details: logs/agent.log in its folder"
    await abort(context, ProblemError("internal", summary, remedy, "INTERNAL"))


class ProblemInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc.aio has no types
    """Turns what the calls raise into statuses, so that no call needs a try of its own."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        return wrapped(handler, partial(_guard_unary, method), partial(_guard_stream, method))


def wrapped(handler: Any, unary: Callable[[Any], Any], stream: Callable[[Any], Any]) -> Any:
    """The handler with `unary` or `stream` around its call; those two kinds are all that the agent has."""
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(
            unary(handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(
            stream(handler.unary_stream), handler.request_deserializer, handler.response_serializer
        )
    raise TypeError("calls with a stream of requests are not guarded")  # better none than one that nobody guards


def _guard_unary(method: str, call: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def guarded(request: Any, context: Any) -> Any:
        try:
            return await call(request, context)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:
            await _fail(context, method, error)

    return guarded


def _guard_stream(
    method: str, call: Callable[[Any, Any], AsyncGenerator[Any, None]]
) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async with contextlib.aclosing(call(request, context)) as messages:  # a caller who leaves ends it at once
                async for message in messages:
                    yield message
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:
            await _fail(context, method, error)

    return guarded
