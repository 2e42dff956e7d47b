"""The default handler logs one line for every event, with tokens in place of phone numbers."""

from maskline import Context, on
from maskline.events import Event
from maskline.schemas.privacy import number_token


@on.every(retries=0, on_give_up="skip")
async def log(event: Event, ctx: Context) -> None:
    """Log `event` with the tokens of both parties, and its run, missing numbers and problems if there are any."""
    facts = {
        "from_number": _token(event.from_number or event.first_party),
        "to_number": _token(event.to_number or event.second_party),
        "run": ctx.run or None,
        "missing": ctx.missing or None,
        "problems": event.problems or None,
    }
    ctx.log.info("event", **{name: value for name, value in facts.items() if value is not None})


def _token(number: str | None) -> str | None:
    """The token of a number. Made here, and not only where lines are written, as users may configure structlog."""
    return None if number is None else number_token(number)
