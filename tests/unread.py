"""Answers of a test's own, as a network delivers them: with the body still to be read."""

import httpx


class UnreadAnswers(httpx.MockTransport):
    """httpx's own mock hands out answers whose body has been read, which nothing can read raw."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer by the handler, unread."""
        answer = await super().handle_async_request(request)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))
