"""Where a request ends (RFC 9112 sections 6 and 7): refused, or passed on as exactly the one request that it is.

Whatever a client sends, the instance sees no request that was not sent as one; see `raw` for how that is checked.
"""

import asyncio
import contextlib

import pytest
from tests.integration.gateway.harness import OK, REQUEST, Backend, Caller, TruncatedError, running_gateway
from tests.integration.gateway.raw import (
    CHUNKED,
    END,
    POST,
    REFUSALS,
    SMUGGLED,
    Case,
    Pace,
    get,
    mixed,
    names,
    passed,
    play,
    refused,
)

from toska_mesh.resilience import State

TE = b"Transfer-Encoding: chunked\r\n"
CASE = ("GET /case", b"")


def length(value: bytes, body: bytes = b"abc" + SMUGGLED) -> bytes:
    """A request whose Content-Length is `value`, to the letter."""
    return POST + b"Content-Length:" + value + b"\r\n\r\n" + body


def coding(value: bytes, *more: bytes) -> bytes:
    """A request whose Transfer-Encoding is `value`, with an empty chunked body and another request behind it."""
    fields = b"".join(field + b"\r\n" for field in (b"Transfer-Encoding:" + value, *more))
    return POST + fields + b"\r\n" + END + SMUGGLED


def chunks(data: bytes) -> bytes:
    return CHUNKED + data + SMUGGLED


LENGTHS: dict[str, Case] = {
    # both lengths (RFC 9112 section 6.3 rule 3): the classic attacks, either way round
    "CL.TE": refused(POST + b"Content-Length: 6\r\n" + TE + b"\r\n" + END + b"G"),
    "CL.TE with a request inside": refused(
        POST + b"Content-Length: %d\r\n" % (5 + len(SMUGGLED)) + TE + b"\r\n" + END + SMUGGLED
    ),
    "TE.CL": refused(
        POST + TE + b"Content-Length: 4\r\n\r\n%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n" + END,
    ),
    "both, and they agree": refused(POST + TE + b"Content-Length: 5\r\n\r\n" + END),
    "both, length zero": refused(POST + b"Content-Length: 0\r\n" + TE + b"\r\n" + END + SMUGGLED),
    "both, length first in HTTP/1.0": refused(
        (POST + b"Content-Length: 6\r\n" + TE + b"\r\n" + END + b"G").replace(b"HTTP/1.1", b"HTTP/1.0")
    ),
    "both, for GET": refused(get(b"Content-Length: 5", b"Transfer-Encoding: chunked") + END + SMUGGLED),
    "both, coding unknown": refused(POST + b"Content-Length: 3\r\nTransfer-Encoding: x\r\n\r\nabc" + SMUGGLED),
    "both, coding empty": refused(POST + b"Transfer-Encoding:\r\nContent-Length: 3\r\n\r\nabc" + SMUGGLED),
    "both, coding identity": refused(POST + b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc" + SMUGGLED),
    "both, far apart": refused(
        POST + b"Content-Length: 3\r\n" + b"X-A: 1\r\n" * 50 + TE + b"\r\nabc" + SMUGGLED, is_long=True
    ),
    # several lengths (section 6.3 rule 5)
    "differing lengths": refused(length(b" 3\r\nContent-Length: 5")),
    "differing lengths, zero last": refused(length(b" 3\r\nContent-Length: 0")),
    "same length twice": refused(length(b" 3\r\nContent-Length: 3")),
    "list of equal lengths": refused(length(b" 3, 3")),
    "list of differing lengths": refused(length(b" 3, 5")),
    "list with an empty item": refused(length(b" 3,")),
    "list that begins empty": refused(length(b" ,3")),
    "lengths in two spellings": refused(length(b" 3\r\ncontent-length: 5")),
    # what is no length
    "plus sign": refused(length(b" +3")),
    "minus sign": refused(length(b" -3")),
    "minus zero": refused(length(b" -0")),
    "hexadecimal": refused(length(b" 0x3")),
    "hexadecimal digits": refused(length(b" a")),
    "octal as Python writes it": refused(length(b" 0o3")),
    "exponent": refused(length(b" 3e0")),
    "fraction": refused(length(b" 3.0")),
    "underscore": refused(length(b" 1_0")),
    "quotes": refused(length(b' "3"')),
    "space inside": refused(length(b" 1 0")),
    "tab inside": refused(length(b" 1\t0")),
    "empty length": refused(length(b"")),
    "white space for a length": refused(length(b"  \t ")),
    "vertical tab before the length": refused(length(b"\x0b3")),
    "form feed behind the length": refused(length(b" 3\x0c")),
    "null behind the length": refused(length(b" 3\x00")),
    "no-break space before the length": refused(length(b" \xa03")),
    "digits of another script": refused(length(" \u0663".encode())),
    "letters": refused(length(b" three")),
    "semicolon": refused(length(b" 3;4")),
    "line feed behind the length": refused(length(b" 3\nX: 1")),
    "carriage return behind the length": refused(length(b" 3\rX: 1")),
    "overflow of 64 bits": refused(length(b" 18446744073709551619")),
    "overflow of 64 bits, many digits": refused(length(b" 1" + b"0" * 100)),
    "folded length": refused(length(b"\r\n 3")),
    "space before the colon": refused(POST + b"Content-Length : 3\r\n\r\nabc" + SMUGGLED),
    "tab before the colon": refused(POST + b"Content-Length\t: 3\r\n\r\nabc" + SMUGGLED),
    "null in the name": refused(POST + b"Content-Length\x00: 3\r\n\r\nabc" + SMUGGLED),
    # more than any instance would take: within 64 bits, so it is a length, but too large
    "length beyond every limit": refused(length(b" 18446744073709551615", b""), 413),
    "length of 2**63": refused(length(b" 9223372036854775808", b""), 413),
    # what is one
    "length zero": passed(length(b" 0", b""), ("POST /case", b"")),
    "leading zeros": passed(length(b" 003", b"abc"), ("POST /case", b"abc")),
    "white space around the length": passed(length(b" \t3 \t", b"abc"), ("POST /case", b"abc")),
    "no space before the length": passed(length(b"3", b"abc"), ("POST /case", b"abc")),
    "length zero, and a request behind it": passed(length(b" 0", b"" + get()), ("POST /case", b""), CASE),
    "length in capitals": passed(POST + b"CONTENT-LENGTH: 3\r\n\r\nabc", ("POST /case", b"abc")),
    "body that looks like a request": passed(length(b" %d" % len(SMUGGLED), SMUGGLED), ("POST /case", SMUGGLED)),
    "body longer than its length": mixed(length(b" 3", b"abcd\r\n\r\n"), 200, 400, reaches=(("POST /case", b"abc"),)),
    "body longer by a request": passed(length(b" 3", b"abc" + get()), ("POST /case", b"abc"), CASE),
    "body longer by CRLF": passed(length(b" 3", b"abc\r\n" + get()), ("POST /case", b"abc"), CASE),
    "GET with a body": passed(get(b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED, ("GET /case", SMUGGLED)),
    "DELETE with a body": passed(
        get(b"Content-Length: %d" % len(SMUGGLED)).replace(b"GET", b"DELETE") + SMUGGLED + get(),
        ("DELETE /case", SMUGGLED),
        CASE,
    ),
    "OPTIONS with a body": passed(
        get(b"Content-Length: 3").replace(b"GET", b"OPTIONS") + b"abc", ("OPTIONS /case", b"abc")
    ),
    "HEAD with a body": passed(get(b"Content-Length: 3").replace(b"GET", b"HEAD") + b"abc", ("HEAD /case", b"abc")),
    "a request without a length has no body": mixed(POST + b"\r\nabc", 200, 400, reaches=(("POST /case", b""),)),
    "a request without a length, another one": passed(POST + b"\r\n" + get(), ("POST /case", b""), CASE),
    "length in HTTP/1.0": passed(
        length(b" 3", b"abc" + SMUGGLED).replace(b"HTTP/1.1\r\nHost", b"HTTP/1.0\r\nHost", 1),
        ("POST /case", b"abc"),
        closes=True,
    ),
}

CODINGS: dict[str, Case] = {
    # TE.TE: a second opinion about the coding (sections 6.1 and 7)
    "chunked twice in one": refused(coding(b" chunked, chunked"), 400, 501),
    "chunked twice": refused(coding(b" chunked", b"Transfer-Encoding: chunked"), 400, 501),
    "chunked, then identity": refused(coding(b" chunked", b"Transfer-Encoding: identity"), 400, 501),
    "identity, then chunked": refused(coding(b" identity", b"Transfer-Encoding: chunked"), 400, 501),
    "chunked, then unknown": refused(coding(b" chunked", b"Transfer-Encoding: x"), 400, 501),
    "unknown, then chunked": refused(coding(b" x", b"Transfer-Encoding: chunked"), 400, 501),
    "chunked, then empty": refused(coding(b" chunked", b"Transfer-Encoding:"), 400, 501),
    "two spellings": refused(coding(b" chunked", b"transfer-encoding: x"), 400, 501),
    "identity": refused(coding(b" identity"), 400, 501),
    "identity, chunked": refused(coding(b" identity, chunked"), 400, 501),
    "chunked, identity": refused(coding(b" chunked, identity"), 400, 501),
    "chunked not last": refused(coding(b" chunked, gzip"), 400, 501),
    "gzip, chunked": refused(coding(b" gzip, chunked"), 501),
    "unknown coding": refused(coding(b" xchunked"), 400, 501),
    "chunked and more letters": refused(coding(b" chunkedx"), 400, 501),
    "half the word": refused(coding(b" chunk"), 400, 501),
    "with a parameter": refused(coding(b" chunked;q=1"), 400, 501),
    "in quotes": refused(coding(b' "chunked"'), 400, 501),
    "in single quotes": refused(coding(b" 'chunked'"), 400, 501),
    "comma before": refused(coding(b" ,chunked"), 400, 501),
    "comma behind": refused(coding(b" chunked,"), 400, 501),
    "space inside": refused(coding(b" chun ked"), 400, 501),
    "empty": refused(coding(b""), 400, 501),
    "vertical tab before": refused(coding(b"\x0bchunked"), 400, 501),
    "vertical tab behind": refused(coding(b" chunked\x0b"), 400, 501),
    "form feed behind": refused(coding(b" chunked\x0c"), 400, 501),
    "tab behind": refused(coding(b" chunked\t"), 400, 501),
    "spaces behind": refused(coding(b" chunked  \t"), 400, 501),
    "null behind": refused(coding(b" chunked\x00"), 400, 501),
    "no-break space behind": refused(coding(b" chunked\xa0"), 400, 501),
    "long s": refused(coding(" chun\u212aed".encode()), 400, 501),
    "line feed before": refused(coding(b"\nchunked"), 400, 501),
    "line feed behind": refused(coding(b" chunked\nX: 1"), 400, 501),
    "carriage return behind": refused(coding(b" chunked\rX: 1"), 400, 501),
    "folded": refused(coding(b"\r\n chunked"), 400, 501),
    "folded by a tab": refused(coding(b"\r\n\tchunked"), 400, 501),
    "folded, and a length": refused(coding(b"\r\n chunked", b"Content-Length: 3"), 400, 501),
    "space before the colon": refused(POST + b"Transfer-Encoding : chunked\r\n\r\n" + END + SMUGGLED),
    "tab before the colon": refused(POST + b"Transfer-Encoding\t: chunked\r\n\r\n" + END + SMUGGLED),
    "space before the name": refused(POST + b"X: 1\r\n Transfer-Encoding: chunked\r\n\r\n" + END + SMUGGLED),
    "in a field that ends in CR": refused(POST + b"X: 1\rTransfer-Encoding: chunked\r\n\r\n" + END + SMUGGLED),
    "in a field that ends in LF": refused(POST + b"X: 1\nTransfer-Encoding: chunked\r\n\r\n" + END + SMUGGLED),
    "null in the name": refused(POST + b"Transfer\x00-Encoding: chunked\r\n\r\n" + END + SMUGGLED),
    "chunked in HTTP/1.0": refused(coding(b" chunked").replace(b"HTTP/1.1", b"HTTP/1.0", 1)),
    "identity in HTTP/1.0": refused(coding(b" identity").replace(b"HTTP/1.1", b"HTTP/1.0", 1), 400, 501),
    # what is chunked
    "in capitals": passed(POST + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n3\r\nabc\r\n" + END, ("POST /case", b"abc")),
    "tab before chunked": passed(POST + b"Transfer-Encoding:\tchunked\r\n\r\n" + END, ("POST /case", b"")),
    "no space before chunked": passed(POST + b"Transfer-Encoding:chunked\r\n\r\n" + END, ("POST /case", b"")),
    "GET with chunks": passed(
        get(b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n" + END + get(), ("GET /case", b"abc"), CASE
    ),
    "named by another field": passed(
        POST + b"X-Note: Transfer-Encoding: chunked\r\n\r\n" + get(), ("POST /case", b""), CASE
    ),
}

CHUNKS: dict[str, Case] = {
    # sizes (section 7.1)
    "size with 0x": refused(chunks(b"0x3\r\nabc\r\n" + END)),
    "size with plus": refused(chunks(b"+3\r\nabc\r\n" + END)),
    "size with minus": refused(chunks(b"-3\r\nabc\r\n" + END)),
    "minus zero": refused(chunks(b"-0\r\n\r\n")),
    "size of 65 bits": refused(chunks(b"10000000000000003\r\nabc\r\n" + END)),
    "size of 64 bits and more digits": refused(chunks(b"ffffffffffffffffff\r\nabc\r\n" + END)),
    "size empty": refused(chunks(b"\r\nabc\r\n" + END)),
    "size empty, with an extension": refused(chunks(b";a=b\r\nabc\r\n" + END)),
    "size no number": refused(chunks(b"three\r\nabc\r\n" + END)),
    "size with h": refused(chunks(b"3h\r\nabc\r\n" + END)),
    "size with underscore": refused(chunks(b"1_0\r\n0123456789abcdef\r\n" + END)),
    "size in quotes": refused(chunks(b'"3"\r\nabc\r\n' + END)),
    "space before the size": refused(chunks(b" 3\r\nabc\r\n" + END)),
    "space behind the size": refused(chunks(b"3 \r\nabc\r\n" + END)),
    "tab behind the size": refused(chunks(b"3\t\r\nabc\r\n" + END)),
    "space in the size": refused(chunks(b"0 3\r\nabc\r\n" + END)),
    "null behind the size": refused(chunks(b"3\x00\r\nabc\r\n" + END)),
    "comma behind the size": refused(chunks(b"3,4\r\nabc\r\n" + END)),
    # line ends
    "size ended by LF": refused(chunks(b"3\nabc\r\n" + END)),
    "size ended by CR": refused(chunks(b"3\rabc\r\n" + END)),
    "size ended by CR CR LF": refused(chunks(b"3\r\r\nabc\r\n" + END)),
    "data ended by LF": refused(chunks(b"3\r\nabc\n" + END)),
    "data ended by CR": refused(chunks(b"3\r\nabc\r" + END)),
    "data not ended": refused(chunks(b"3\r\nabc" + END)),
    "data longer than its size": refused(chunks(b"3\r\nabcd\r\n" + END)),
    "data shorter than its size": refused(chunks(b"5\r\nabc\r\n" + END)),
    "data whose end is two bytes of anything": refused(chunks(b"3\r\nabcXX" + END)),
    "last chunk ended by LF": refused(chunks(b"3\r\nabc\r\n0\n\r\n")),
    "empty line ended by LF": refused(chunks(b"3\r\nabc\r\n0\r\n\n")),
    "empty line ended by CR": refused(chunks(b"3\r\nabc\r\n0\r\n\rX")),
    "no empty line": refused(chunks(b"3\r\nabc\r\n0\r\n"), 400),
    # extensions (section 7.1.1)
    "line feed in an extension": refused(chunks(b"3;a\nb\r\nabc\r\n" + END)),
    "line feed ends an extension": refused(chunks(b"3;a=b\nabc\r\n" + END)),
    "line feed and a chunk in an extension": refused(chunks(b"2;\nxx\r\n50\r\n0\r\n\r\n")),
    "carriage return in an extension": refused(chunks(b"3;a\rb\r\nabc\r\n" + END)),
    "line feed in a quoted extension": refused(chunks(b'3;a="\n"\r\nabc\r\n' + END)),
    "CRLF in a quoted extension": refused(chunks(b'3;a="\r\n"\r\nabc\r\n' + END)),
    "escaped CRLF in a quoted extension": refused(chunks(b'3;a="\\\r\n"\r\nabc\r\n' + END)),
    "quote never closed": refused(chunks(b'3;a="b\r\nabc\r\n' + END)),
    "null in an extension": refused(chunks(b"3;a\x00b\r\nabc\r\n" + END)),
    "null in a quoted extension": refused(chunks(b'3;a="\x00"\r\nabc\r\n' + END)),
    "empty extension": refused(chunks(b"3;\r\nabc\r\n" + END)),
    "space before an extension": refused(chunks(b"3 ;a\r\nabc\r\n" + END)),
    "space in an extension": refused(chunks(b"3; a = b\r\nabc\r\n" + END)),
    "value without quotes that needs them": refused(chunks(b"3;a=b{c\r\nabc\r\n" + END)),
    # what is well
    "extensions": passed(CHUNKED + b'3;a=b;c="d \\" ;";e\r\nabc\r\n0;f\r\n\r\n', ("POST /case", b"abc")),
    "size with zeros": passed(CHUNKED + b"0003\r\nabc\r\n000\r\n\r\n", ("POST /case", b"abc")),
    "size in capitals": passed(CHUNKED + b"A\r\n0123456789\r\n" + END, ("POST /case", b"0123456789")),
    "chunk that looks like a request": passed(
        CHUNKED + b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n" + END, ("POST /case", SMUGGLED)
    ),
    "chunk that looks like the last one": passed(CHUNKED + b"5\r\n0\r\n\r\n\r\n" + END, ("POST /case", END)),
    "a request behind the last chunk": passed(CHUNKED + END + get(), ("POST /case", b""), CASE),
    # trailers (section 7.1.2)
    "length among the trailers": refused(CHUNKED + b"3\r\nabc\r\n0\r\nContent-Length: 9\r\n\r\n" + SMUGGLED),
    "coding among the trailers": refused(chunks(b"3\r\nabc\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n")),
    "unknown coding among the trailers": refused(chunks(b"0\r\nTransfer-Encoding : x\r\n\r\n")),
    "trailer ended by LF": refused(chunks(b"3\r\nabc\r\n0\r\nX: 1\n\r\n")),
    "trailer folded": refused(chunks(b"3\r\nabc\r\n0\r\nX: 1\r\n 2\r\n\r\n")),
    "trailer that begins with a space": refused(chunks(b"0\r\n X: 1\r\n\r\n")),
    "trailer without a name": refused(chunks(b"0\r\n: 1\r\n\r\n")),
    "trailer with a space before its colon": refused(chunks(b"0\r\nX : 1\r\n\r\n")),
    "trailer with a null": refused(chunks(b"0\r\nX: \x00\r\n\r\n")),
    "request in the place of trailers": refused(CHUNKED + b"0\r\n" + SMUGGLED),
    "upgrade among the trailers": passed(
        chunks(b"0\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"), ("POST /case", b""), ("GET /smuggled", b"")
    ),
    "close among the trailers": passed(CHUNKED + b"0\r\nConnection: close\r\n\r\n", ("POST /case", b"")),
}

BODIES: dict[str, Case] = {
    "two in one": passed(get() + get(), CASE, CASE),
    "three with bodies": passed(
        POST + b"Content-Length: 3\r\n\r\nabc" + CHUNKED + b"2\r\nde\r\n" + END + get(),
        ("POST /case", b"abc"),
        ("POST /case", b"de"),
        CASE,
    ),
    "a malformed one behind two good ones": mixed(
        get() + get() + b"NONSENSE\r\n\r\n" + SMUGGLED, 200, 200, 400, reaches=(CASE, CASE)
    ),
    "both lengths behind a good one": mixed(
        get() + POST + b"Content-Length: 5\r\n" + TE + b"\r\n" + END + SMUGGLED, 200, 400, reaches=(CASE,)
    ),
    "a bad host behind a good one": mixed(get() + get(b"Host: other.example") + SMUGGLED, 200, 400, reaches=(CASE,)),
    "a bad version behind a good one": mixed(
        get() + get().replace(b"HTTP/1.1", b"HTTP/2.0") + SMUGGLED, 200, 505, reaches=(CASE,)
    ),
    "a bad chunk behind a good one": mixed(
        get() + CHUNKED + b"3\r\nabcd\r\n" + END + SMUGGLED, 200, 400, reaches=(CASE,)
    ),
    # switching protocols (RFC 9110 section 7.8): the parser must not lose count of a body
    "chunked with upgrade": refused(
        POST + b"Connection: upgrade\r\nUpgrade: x\r\n" + TE + b"\r\n3\r\nabc\r\n" + END + SMUGGLED
    ),
    "chunked with empty upgrade": refused(
        POST + b"Connection: upgrade\r\nUpgrade:\r\n" + TE + b"\r\n3\r\nabc\r\n" + END + SMUGGLED
    ),
    "chunked with upgrade to h2c": refused(
        POST + b"Connection: upgrade\r\nUpgrade: h2c\r\n" + TE + b"\r\n" + END + SMUGGLED
    ),
    "body and upgrade to h2c": passed(
        POST + b"Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\nContent-Length: 3\r\n"
        b"\r\nabc" + get(),
        ("POST /case", b"abc"),
        CASE,
    ),
    "body and upgrade": passed(
        POST + b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc" + get(),
        ("POST /case", b"abc"),
        CASE,
    ),
    "body that looks like a request, and upgrade": passed(
        POST + b"Connection: upgrade\r\nUpgrade: x\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED + get(),
        ("POST /case", SMUGGLED),
        CASE,
    ),
    "upgrade to h2c": passed(
        get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAM") + get(), CASE, CASE
    ),
    "upgrade that nobody wants": passed(get(b"Connection: Upgrade", b"Upgrade: websocket") + get(), CASE, CASE),
    "upgrade that Connection does not name": passed(get(b"Upgrade: websocket") + get(), CASE, CASE),
    "upgrade in HTTP/1.0": passed(
        b"GET /api/orders/case HTTP/1.0\r\nConnection: upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n" + get(),
        CASE,
        CASE,
    ),
    # persistence (RFC 9112 section 9.3)
    "after close nothing": passed(get(b"Connection: close") + SMUGGLED, CASE, closes=True),
    "after close in capitals nothing": passed(get(b"Connection: x, CLOSE") + SMUGGLED, CASE, closes=True),
    "close wins over keep-alive": passed(
        get(b"Connection: close", b"Connection: keep-alive") + SMUGGLED, CASE, closes=True
    ),
    "after a body and close nothing": passed(
        POST + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc" + SMUGGLED, ("POST /case", b"abc"), closes=True
    ),
    "HTTP/1.0 closes": passed(b"GET /api/orders/case HTTP/1.0\r\n\r\n" + SMUGGLED, CASE, closes=True),
    "HTTP/1.0 that keeps alive": passed(
        b"GET /api/orders/case HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + get(), CASE, CASE
    ),
    # expectations (RFC 9110 section 10.1.1)
    "Expect with a body": passed(
        POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc" + get(), ("POST /case", b"abc"), CASE
    ),
    "Expect in capitals with chunks": passed(
        POST + b"Expect: 100-CONTINUE\r\n" + TE + b"\r\n3\r\nabc\r\n" + END, ("POST /case", b"abc")
    ),
    "Expect without a body": passed(get(b"Expect: 100-continue") + get(), CASE, CASE),
    "Expect of something unknown": passed(
        POST + b"Expect: miracles\r\nContent-Length: 3\r\n\r\nabc", ("POST /case", b"abc")
    ),
    "Expect twice": passed(
        POST + b"Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc", ("POST /case", b"abc")
    ),
    "Expect in HTTP/1.0": passed(
        b"POST /api/orders/case HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
        ("POST /case", b"abc"),
        closes=True,
    ),
}


@pytest.mark.parametrize(("case", "pace"), names(LENGTHS))
async def test_lengths(case: Case, pace: Pace) -> None:
    await play(case, pace)


@pytest.mark.parametrize(("case", "pace"), names(CODINGS))
async def test_transfer_codings(case: Case, pace: Pace) -> None:
    await play(case, pace)


@pytest.mark.parametrize(("case", "pace"), names(CHUNKS))
async def test_chunks(case: Case, pace: Pace) -> None:
    await play(case, pace)


@pytest.mark.parametrize(("case", "pace"), names(BODIES))
async def test_bodies_and_what_follows_them(case: Case, pace: Pace) -> None:
    await play(case, pace)


SPLIT = (
    POST + b"Content-Length: 3\r\nX-A: 1\r\n\r\nabc",
    CHUNKED + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n",
    get(b"Connection: upgrade", b"Upgrade: h2c") + get(),
)


@pytest.mark.parametrize("whole", SPLIT, ids=["length", "chunked", "upgrade"])
async def test_split_at_every_byte(whole: bytes) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect(limit=2**20)
        answers = 2 if b"h2c" in whole else 1
        for position in range(1, len(whole)):
            client.send(whole[:position])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            client.send(whole[position:])
            for _ in range(answers):
                assert (await client.answer()).status == 200, position
        seen = {(request.start, request.body, tuple(request.trailers)) for request in backend.requests}
        assert len(seen) == 1, seen
        assert len(backend.requests) == answers * (len(whole) - 1)


@pytest.mark.parametrize("second", [get(), get().replace(b"GET", b"PROPFIND"), POST + b"Content-Length: 1\r\n\r\nx"])
async def test_two_in_three_reads_split_at_every_byte_of_the_second(second: bytes) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect(limit=2**20)
        first = get(b"X-A: 1")
        for position in range(len(second)):
            for part in (first[:50], first[50:] + second[:position], second[position:]):
                client.send(part)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            for _ in range(2):
                assert (await client.answer()).status == 200, position
        assert len(backend.requests) == 2 * len(second)


async def test_a_request_behind_close_among_the_trailers_is_not_left_waiting() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        assert (await client.ask(CHUNKED + b"0\r\nConnection: close\r\n\r\n")).status == 200
        client.send(SMUGGLED)
        assert await client.is_closed()
        assert len(backend.requests) == 1


async def test_one_byte_at_a_time() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        for byte in SPLIT[1]:
            client.send(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0.001)
        assert (await client.answer()).status == 200
        (request,) = backend.requests
        assert request.body == b"abcde"
        assert request.trailers == [("X-Trailer", "1")]


async def test_trailers_about_framing_do_not_pass() -> None:
    trailers = b"X-Sum: 1\r\nHost: evil\r\nX-Forwarded-For: 1.1.1.1\r\nConnection: x\r\nAuthorization: Bearer x\r\n"
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(CHUNKED + b"3\r\nabc\r\n0\r\n" + trailers + b"\r\n")
        assert backend.requests[0].trailers == [("X-Sum", "1")]


async def test_a_flood_of_malformed_requests_hurts_nobody_else() -> None:
    tables = (*LENGTHS.values(), *CODINGS.values(), *CHUNKS.values())
    malformed = [case.sent for case in tables if not case.reaches]
    async with Backend() as backend, running_gateway(backend) as gateway:
        other = await gateway.connect()

        async def attack(data: bytes) -> None:
            client = await gateway.connect()
            client.send(data)
            assert (await client.answer()).status in REFUSALS
            client.reset()

        for _ in range(3):
            async with asyncio.TaskGroup() as attackers:
                for data in malformed:
                    attackers.create_task(attack(data))
            assert (await other.ask(REQUEST)).status == 200
        assert gateway.breakers == {State.CLOSED}
        assert gateway.in_flight == 0


@pytest.mark.parametrize(
    "stream",
    [b"GET /api/orders/ HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 4096, b"GET /" + b"a" * 4096, b"GET / HTTP/1.1\r\nX: 1"],
    ids=["value", "target", "fields"],
)
async def test_a_head_without_end_is_cut_at_the_limit(stream: bytes) -> None:
    more = b"\r\nX: 1" * 500 if stream.endswith(b"X: 1") else b"a" * 4096
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_HEADER_BYTES=8192) as gateway:
        client = await gateway.connect()
        client.send(stream)
        for _ in range(8):
            client.send(more)
        assert (await client.answer()).status == 431
        assert await client.is_closed()
    assert gateway.recorded == 1


@pytest.mark.parametrize("part", [b"a" * 4096, b"\r\nX-T: " + b"a" * 4096], ids=["one", "many"])
async def test_trailers_without_end_are_cut_at_the_limit(part: bytes) -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_HEADER_BYTES=8192) as gateway:
        client = await gateway.connect()
        client.send(CHUNKED + b"3\r\nabc\r\n0\r\nX-T: a")
        for _ in range(16):
            client.send(part)
            await asyncio.sleep(0.005)
        assert (await client.answer()).status == 431
        assert await client.is_closed()
        assert gateway.breakers == {State.CLOSED}


async def test_a_chunk_extension_without_end_is_cut_at_the_limit() -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_HEADER_BYTES=8192) as gateway:
        client = await gateway.connect()
        client.send(CHUNKED + b"3;")
        for _ in range(8):
            client.send(b"a" * 4096)
            await asyncio.sleep(0.01)
        assert (await client.answer()).status == 431
        assert gateway.breakers == {State.CLOSED}


async def test_requests_in_one_packet_are_answered_in_order() -> None:
    async def script(caller: Caller) -> None:
        while (request := await caller.request()) is not None:
            await asyncio.sleep(0.02 if request.target == "/0" else 0)
            body = request.target.encode()
            await caller.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        paths = [f"/api/orders/{number}" if number % 3 else f"/api/none/{number}" for number in range(100)]
        paths[0] = "/api/orders/0"
        client.send("".join(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n" for path in paths).encode())
        for path in paths:
            answer = await client.answer()
            if path.startswith("/api/orders"):
                assert answer.body.decode() == path.removeprefix("/api/orders")
            else:
                assert answer.status == 404


async def test_good_requests_before_a_malformed_one_are_answered_first() -> None:
    async def script(caller: Caller) -> None:
        while await caller.request() is not None:
            await asyncio.sleep(0.02)
            await caller.send(OK)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(get() + get() + b"NONSENSE\r\n\r\n")
        assert [(await client.answer()).status for _ in range(3)] == [200, 200, 400]
        assert await client.is_closed()


async def test_an_upload_too_large_takes_its_turn() -> None:
    async def script(caller: Caller) -> None:
        while await caller.request() is not None:
            await asyncio.sleep(0.02)
            await caller.send(OK)

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_MAX_REQUEST_BYTES=10) as gateway:
        client = await gateway.connect()
        client.send(get() + CHUNKED + b"20\r\n" + b"a" * 32 + b"\r\n" + END)
        assert [(await client.answer()).status for _ in range(2)] == [200, 413]
        assert await client.is_closed()


@pytest.mark.parametrize("path", ["/health", "/api/none/"])
async def test_many_pipelined_requests_are_bounded(path: str) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        one = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        client.send(REQUEST + one * 2000)
        answers = []
        with contextlib.suppress(TruncatedError):
            while len(answers) <= 2000:
                answers.append(await client.answer())
        assert 100 <= len(answers) < 2000
        assert answers[-1].get("Connection") == "close"


async def test_a_client_that_does_not_read_is_not_answered_further() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        (connection,) = gateway.proxy.clients
        request = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        for _ in range(200):
            client.send(request * 50)
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)
        assert connection.transport.get_write_buffer_size() < 256 * 1024
        client.reset()
