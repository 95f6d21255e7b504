"""The `nullrec` command. Heavy imports wait until a command needs them, so that --help answers at once."""

import typer

from nullrec_lib.cli import data, information, profiles, work

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Language embeddings in sequential recommendation: look at data and spectra, run a method, reproduce all.",
)
app.add_typer(work.app)
app.add_typer(data.app, name="data")
app.add_typer(profiles.app, name="profiles")
app.add_typer(profiles.model_app, name="model")
app.add_typer(profiles.grpo_app)
app.add_typer(information.app)
