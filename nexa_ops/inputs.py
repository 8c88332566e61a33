"""Rows that a user brings to a packed model: in the columns its dataset was made of, or in the model's own."""

from collections.abc import Mapping
from typing import Any

from nexa_core.config.data import ChatRows, FeatureRows, PairRows, Rows, TextRows
from nexa_data.makers import RowError
from nexa_data.rows import Canonical, canonical, plain_messages, used_columns
from nexa_models.spec import ModelSpec

OWN_COLUMN = {"features": "features", "text": "text", "pairs": "prompt", "chat": "messages"}
NO_LABEL = "the label of a row that is to be predicted"


class InputReader:
    """Makes rows what the model reads, by the same rules that `prepare` made its training rows by."""

    def __init__(self, spec: ModelSpec, rows: Rows):
        self.own_column = OWN_COLUMN[spec.kind]
        without_target = _without_target(rows, spec)
        self.source_columns = tuple(column for _, column in used_columns(without_target) if column != NO_LABEL)
        self._from_source, self._from_own = ((rows, canonical(rows)) for rows in (without_target, _own_rows(spec)))

    def read(self, values: Mapping[str, Any]) -> Any:
        """The one value of a row that the model reads.

        Raises:
            RowError: there is none; says why.
        """
        rows, make = self._maker(values)
        if isinstance(rows, ChatRows):
            return plain_messages(make(_answered(values, rows)).columns[self.own_column])[:-1]
        return make({**values, NO_LABEL: "-"}).columns[self.own_column]

    def _maker(self, values: Mapping[str, Any]) -> tuple[Rows, Canonical]:
        if self.source_columns and all(column in values for column in self.source_columns):
            return self._from_source
        # A source column of the same name as the model's own is only a part of what the model reads.
        if self.own_column in values and self.own_column not in self.source_columns:
            return self._from_own
        source = " and ".join(f"'{column}'" for column in self.source_columns)
        own = "" if self.own_column in self.source_columns else f"'{self.own_column}'"
        raise RowError("missing column", f"expected {' or '.join(each for each in (source, own) if each)}")


def _without_target(rows: Rows, spec: ModelSpec) -> Rows:
    """The dataset's settings, with nothing asked for that is not known before the prediction."""
    if isinstance(rows, PairRows) and rows.template is not None:
        return _own_rows(spec)  # prompts as they were made; the template's text is no part of a package
    if isinstance(rows, PairRows):
        return rows.model_copy(update={"completion": None})
    if isinstance(rows, ChatRows):
        return rows
    if isinstance(rows, FeatureRows):
        return rows.model_copy(update={"label": NO_LABEL, "shape": spec.feature_shape})
    return rows.model_copy(update={"label": NO_LABEL})


def _answered(values: Mapping[str, Any], rows: ChatRows) -> dict[str, Any]:
    """A conversation with an answer in place of the one that is asked for; one that is there already is left out."""
    given = values[rows.messages]
    if not isinstance(given, list):
        return dict(values)  # which the maker refuses, and says why
    roles: dict[str, str] = {"assistant": "assistant", **rows.roles}
    names = [theirs for theirs, ours in roles.items() if ours == "assistant"]
    is_answered = bool(given) and isinstance(given[-1], Mapping) and given[-1].get(rows.role) in names
    answer = {rows.role: names[-1] if names else "assistant", rows.content: "-"}
    return {**values, rows.messages: [*(given[:-1] if is_answered else given), answer]}


def _own_rows(spec: ModelSpec) -> Rows:
    if spec.kind == "chat":
        return ChatRows(name="chat", messages="messages")
    if spec.kind == "pairs":
        return PairRows(name="pairs", prompt="prompt")
    if spec.kind == "features":
        return FeatureRows(name="features", features="features", label=NO_LABEL, shape=spec.feature_shape)
    return TextRows(name="text", text="text", label=NO_LABEL)
