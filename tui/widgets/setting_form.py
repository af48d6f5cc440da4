"""The settings of a server as a form, made from `serve`'s own list of them."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.content import Content

from adapterhub.serve.wish import SETTINGS, Setting, Wish, values_of
from adapterhub.tui.widgets.form import Choice, Form, FormRow, Text, Toggle


class SettingForm(Form):
    """A row for each setting; empty ones are computed, as they say."""

    DEFAULT_CSS = """
    SettingForm FormRow {
        .label {
            width: 10;
        }

        .problem {
            padding-left: 0;
        }
    }
    """

    def __init__(self) -> None:
        super().__init__(id="settings", classes="panel")
        self.border_title = Content("Settings")
        self._plain = values_of(Wish())

    def compose(self) -> ComposeResult:
        for setting in SETTINGS:
            yield FormRow(setting.label, self._control(setting))

    @property
    def values(self) -> dict[str, str | bool]:
        """What the controls hold, by setting."""
        found: dict[str, str | bool] = {}
        for row in self.query(FormRow):
            value = getattr(row.field, "value", "")
            found[row.control_name] = value if isinstance(value, bool) else str(value).strip()
        return found

    def _control(self, setting: Setting) -> Choice | Text | Toggle:
        control = self._field(setting)
        explained = " ".join(text for text in (setting.about, control.HELP) if text)
        setattr(control, "HELP", explained)  # noqa: B010 - of this one, where the class has one for all
        return control

    def _field(self, setting: Setting) -> Choice | Text | Toggle:
        value = self._plain[setting.field]
        if isinstance(value, bool):
            return Toggle(value, name=setting.field, text=setting.help)
        if setting.kind == "choice":
            return Choice([(one, one) for one in setting.choices], value, name=setting.field)
        return Text(value, name=setting.field, placeholder=setting.help)
