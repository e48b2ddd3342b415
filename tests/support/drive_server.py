"""A server that sends public files as Google Drive does, with its confirmation pages of several years."""

from collections.abc import Mapping
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from web_server import Answer, File, WebServer, page, redirect

Manner = Literal["small", "form", "old form", "link", "cookie"]
"""What comes before the file: nothing, or one of the pages that Google has asked on whether to download anyway."""

TOKENS: dict[Manner, str] = {"small": "", "form": "t", "old form": "t", "link": "AbCd", "cookie": "AbCd"}
"""What confirms the download."""


class DriveServer(WebServer):
    """Serves files by their ids; their faults go by the ids, too."""

    def __init__(self, files: Mapping[str, bytes | File], manner: Manner = "form") -> None:
        super().__init__(files)
        self.manner = manner

    def answer(self, target: str, request: Mapping[str, str]) -> Answer:
        """Lead to the file, ask to confirm, or send it."""
        path, query = urlsplit(target).path, dict(parse_qsl(urlsplit(target).query))
        file_id, confirmed = query.get("id", ""), query.get("confirm", "")
        if path not in ("/uc", "/download") or query.get("export") != "download" or file_id not in self.files:
            return super().answer(target, request)
        answer = Answer(self.files[file_id], request, self.closing)
        if path == "/uc":
            redirect(f"{self.url}/download?{urlsplit(target).query}", 303)(answer)
        elif confirmed == TOKENS[self.manner] and (self.manner != "cookie" or confirmed in request.get("Cookie", "")):
            if fault := self.next_fault(file_id):
                fault(answer)
        else:
            page(self.warning(file_id))(answer)
            if self.manner == "cookie":
                cookie = f"download_warning_13058876669334088843_{file_id}={TOKENS[self.manner]}; Path=/"
                answer.headers["Set-Cookie"] = cookie
        return answer

    def warning(self, file_id: str) -> str:
        """The page that asks whether to download anyway."""
        anyway = {
            "form": f"""<form id="download-form" action="{self.url}/download" method="get">
                <input type="submit" id="uc-download-link" value="Download anyway"/>
                <input type="hidden" name="id" value="{file_id}"/><input type="hidden" name="export" value="download"/>
                <input type="hidden" name="confirm" value="t"/><input type="hidden" name="uuid" value="0b6d-4f"/>
                </form>""",
            "old form": f"""<form id="downloadForm" method="post"
                action="{self.url}/uc?export=download&amp;id={file_id}&amp;confirm=t&amp;uuid=0b6d-4f">
                <input type="submit" id="uc-download-link" value="Download anyway"/></form>""",
            "link": f"""<a id="uc-download-link"
                href="/uc?export=download&amp;confirm={TOKENS["link"]}&amp;id={file_id}">Download anyway</a>""",
            "cookie": '<button id="uc-download-link">Download anyway</button>',
        }
        return f"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>
            <meta http-equiv="content-type" content="text/html; charset=utf-8"/><style>.a{{color:#fff}}</style></head>
            <body><div class="uc-main"><p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
            <p class="uc-warning-subcaption"><span class="uc-name-size"><a href="/open?id={file_id}">weights.pth</a>
            (318M)</span> is too large for Google to scan for viruses. Would you still like to download this file?</p>
            {anyway[self.manner]}</div></body></html>"""
