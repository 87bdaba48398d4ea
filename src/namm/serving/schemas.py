"""What requests and answers look like: OpenAI's fields, and ``document``.

A field of OpenAI's that can't be served may be given with the value that asks for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MOST = 2**31 - 1
SEED = 2**53  # beyond, JSON's numbers are not exact


def _whole(value: Any) -> Any:
    """JSON knows one kind of numbers: 5.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
TokenId = Annotated[int, Field(ge=0), WHOLE]
Number = Annotated[float, Field(allow_inf_nan=False)]
Nothing = Annotated[float, Field(ge=0, le=0)] | None
Stop = str | Annotated[list[str], Field(max_length=4)] | None
DocumentId = Annotated[str, Field(pattern=r"^doc-[0-9a-f]{32}$", description="Read before, by POST /v1/documents.")]


class Strict(BaseModel):
    """Refuses unknown fields and wrong types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """What a stream has beside the answer."""

    include_usage: bool = False


class Asked(Strict):
    """What both ways of asking have."""

    model: str = Field(max_length=500)
    document: DocumentId | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST), WHOLE] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-SEED, le=SEED), WHOLE] | None = None
    stop: Stop = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1, description="Only 1 is served."), WHOLE] | None = None
    user: str | None = None
    presence_penalty: Nothing = None
    frequency_penalty: Nothing = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    @property
    def wanted(self) -> int | None:
        """Tokens of the answer at most."""
        return self.max_tokens


class CompletionRequest(Asked):
    """A text that is to be gone on with."""

    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[TokenId], Field(min_length=1)]
    best_of: Annotated[int, Field(ge=1, le=1), WHOLE] | None = None
    echo: Literal[False] | None = None
    logprobs: Annotated[int, Field(ge=0, le=0), WHOLE] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None


class TextPart(Strict):
    """One of several parts of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None

    @property
    def turn(self) -> dict[str, str]:
        """As a chat template takes it."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class TextFormat(Strict):
    """The only format of an answer."""

    type: Literal["text"]


class ChatRequest(Asked):
    """A chat in which the assistant's turn has come."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST), WHOLE] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0), WHOLE] | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def wanted(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class DocumentRequest(Strict):
    """A text that is to be read once."""

    text: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(max_length=200)] = ""
    raw: Annotated[bool, Field(description="Without the model's chat template; for /v1/completions.")] = False
    rehearse: Annotated[
        bool | None,
        Field(description="The model repeats the text before anything is forgotten; null: as the server does."),
    ] = None


class PromptDetails(BaseModel):
    """Of a prompt."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CompletionChoice(BaseModel):
    """The answer."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    """Of a text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ChatMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The answer."""

    index: int
    message: ChatMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """Of a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ModelCard(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """It alone."""

    object: Literal["list"]
    data: list[ModelCard]


class DocumentCard(BaseModel):
    """A text that was read, see `namm.serving.documents.Document`."""

    id: str
    object: Literal["document"]
    name: str
    created: int
    tokens: int
    chat: bool
    kept_fraction: float
    bytes: int
    rehearsed: bool


class DocumentList(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[DocumentCard]


class Deleted(BaseModel):
    """One that is gone."""

    id: str
    object: Literal["document"]
    deleted: bool


class DocumentTokens(BaseModel):
    """What was kept of a document: its tokens, how many heads hold each, and of how many."""

    tokens: list[str]
    held: list[int]
    heads: int


class ErrorDetail(BaseModel):
    """What is wrong and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Any error."""

    error: ErrorDetail


class Health(BaseModel):
    """Whether requests are taken."""

    status: Literal["ok", "stopping"]
