"""A web server on the loopback interface, with answers of all kinds."""

import contextlib
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Website(ThreadingHTTPServer):
    """Serves `pages`: of a path bytes, a status, or where it redirects to."""

    def __init__(self, pages):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages = pages
        self.asked = []  # request lines
        self.ranges = True  # whether it knows them
        self.telling = True  # whether it tells sizes

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Website

    def do_GET(self):
        self.server.asked.append(self.path)
        pages = self.server.pages
        page = pages[self.path] if self.path in pages or isinstance(pages, defaultdict) else 404
        if isinstance(page, int):
            self._answer(page)
        elif isinstance(page, str):
            self._answer(302, headers={"Location": page})
        else:
            self._answer_page(page)

    def do_HEAD(self):
        self.do_GET()

    def _answer_page(self, page):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "") if self.server.ranges else None
        if wanted is None:
            self._answer(200, page, {"ETag": '"1"'})
            return
        start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(page))
        self._answer(206, page[start:end], {"ETag": '"1"', "Content-Range": f"bytes {start}-{end - 1}/{len(page)}"})

    def _answer(self, status, body=b"", headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.server.telling:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

    def log_message(self, *_):
        """Tests speak for themselves."""


@contextlib.contextmanager
def running_website(pages):
    with Website(pages) as website:
        thread = threading.Thread(target=website.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield website
        finally:
            website.shutdown()
            thread.join()
