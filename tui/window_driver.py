"""What draws a browser's window: Textual's own, but its application never outlives the server that started it."""

from __future__ import annotations

import os
from threading import Timer

from textual import messages
from textual.drivers import web_driver

LEAVING_SECONDS = 3.0
"""How long the application may take to leave once nobody reads what it draws."""


class WebDriver(web_driver.WebDriver):
    """Its stdin is held open by the server: an end of it means that the server is gone, or has closed the window."""

    def run_input_thread(self) -> None:
        super().run_input_thread()
        if not self.exit_event.is_set():
            last = Timer(LEAVING_SECONDS, os._exit, [1])
            last.daemon = True
            last.start()
            self._app.post_message(messages.ExitApp())
