"""RTSP server for tests: JPEG frames over RTP (RFC 2326, RFC 2435), interleaved in the TCP connection."""

import base64
import contextlib
import socketserver
import struct
import threading
import time

import cv2
import numpy as np

SDP = "v=0\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:track\r\n"
CLOCK = 90_000  # ticks of RTP time stamps per second
MAX_PAYLOAD = 1400


def packets_of(image, number, rate):
    """Yield the RTP packets of a frame, whose sides are multiples of 16."""
    jpeg = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
    tables, scan, position = b"", b"", 2
    while not scan:  # segments: marker, length, content
        marker, length = struct.unpack_from(">HH", jpeg, position)
        content = jpeg[position + 4 : position + 2 + length]
        if marker == 0xFFDB:  # quantization tables, each after a byte with its number
            tables += b"".join(content[i + 1 : i + 65] for i in range(0, len(content), 65))
        position += 2 + length
        if marker == 0xFFDA:
            scan = jpeg[position:-2]
    height, width = image.shape[:2]
    sequence, offset = number * 1000, 0
    while offset < len(scan):
        # Type 1 is 4:2:0, and quality 255 means that the tables follow.
        payload = struct.pack(">II", offset, 1 << 24 | 255 << 16 | width // 8 << 8 | height // 8)
        if offset == 0:
            payload += struct.pack(">HH", 0, len(tables)) + tables
        part = scan[offset : offset + MAX_PAYLOAD]
        offset += len(part)
        is_last = offset == len(scan)
        ticks = round(number * CLOCK / rate)
        header = struct.pack(">BBHII", 0x80, is_last << 7 | 26, sequence % 65536, ticks, 1)
        sequence += 1
        yield header + payload + part


class Session(socketserver.StreamRequestHandler):
    """One client."""

    def handle(self):
        while line := self.rfile.readline():
            method, fields = line.decode().split()[0], {}
            while (header := self.rfile.readline().decode().strip()) != "":
                name, _, value = header.partition(":")
                fields[name.lower()] = value.strip()
            self.answer(method, fields)
            if method == "PLAY":
                with contextlib.suppress(OSError):  # until the client closes the connection
                    self.play()
                return

    def answer(self, method, fields):
        lines, body, user = ["CSeq: " + fields["cseq"]], "", self.server.user
        status = "200 OK"
        expected = "Basic " + base64.b64encode((user or "").encode()).decode()
        if user is not None and fields.get("authorization") != expected:
            status = "401 Unauthorized"
            lines.append('WWW-Authenticate: Basic realm="test"')
        elif method == "OPTIONS":
            lines.append("Public: DESCRIBE, SETUP, PLAY, TEARDOWN")
        elif method == "DESCRIBE":
            body = SDP
            lines += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        else:
            lines.append("Session: 1")
            if method == "SETUP":
                lines.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        self.wfile.write("\r\n".join([f"RTSP/1.0 {status}", *lines, "", body]).encode())

    def play(self):
        for number, image in enumerate(self.server.frames):
            for packet in packets_of(image, number, self.server.rate):
                self.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
            time.sleep(0.01)


class Server(socketserver.ThreadingTCPServer):
    """Server of a fixed list of frames; the stream ends after the last one."""

    allow_reuse_address = daemon_threads = True
    block_on_close = False


@contextlib.contextmanager
def serve(frames, *, rate=25.0, user=None):
    """Context with the address of a server for RGB frames.

    Args:
      frames: RGB images with sides that are multiples of 16.
      rate: frames per second by the time stamps.
      user: `NAME:PASSWORD` that the server demands; None for none.
    """
    with Server(("127.0.0.1", 0), Session) as server:
        server.frames, server.rate, server.user = [np.asarray(f) for f in frames], rate, user
        threading.Thread(target=server.serve_forever, daemon=True).start()
        login = "" if user is None else f"{user}@"
        try:
            yield f"rtsp://{login}127.0.0.1:{server.server_address[1]}/live"
        finally:
            server.shutdown()
