"""What a person reads of a request that failed: one clause that says what to do, and nothing of what the server sent."""

import pytest
from hypothesis import given, strategies as st

from clustergauge.errors import UsageError
from clustergauge.object_url import ObjectUrl, is_url, parse
from storage_io.object_errors import cause_of, failure

SECRET = "planted/Secret+0123456789"


def answered(status, body):
    """As obstore tells an answer that is an error."""
    return f"Generic S3 error: Error performing PUT http://h/b/k in 1ms - Server returned non-2xx status code: {status}: {body}"


def of_code(code):
    return f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>{SECRET} is {SECRET}</Message></Error>"


def http_error(kind, source):
    """As obstore tells a request without an answer."""
    return (
        f"Generic S3 error: HTTP error: error sending request\n\ninner: Http(\n HttpError {{\n  kind: {kind},\n  source: {source}"
    )


@pytest.mark.parametrize(
    ("text", "words", "passing"),
    [
        (answered("404 Not Found", of_code("NoSuchBucket")), "there is no such bucket: make it", False),
        (answered("403 Forbidden", of_code("SignatureDoesNotMatch")), "the secret key does not belong to the access key", False),
        (answered("403 Forbidden", of_code("InvalidAccessKeyId")), "does not know the access key", False),
        (answered("403 Forbidden", of_code("AccessDenied")), "access is denied", False),
        (answered("403 Forbidden", of_code("RequestTimeTooSkewed")), "the clock of this machine is off", False),
        (answered("400 Bad Request", of_code("ExpiredToken")), "the session token has expired", False),
        (answered("301 Moved", of_code("PermanentRedirect")), "another region: set AWS_DEFAULT_REGION", False),
        (answered("404 Not Found", ""), "look at the endpoint", False),
        (answered("503 Slow Down", of_code("SlowDown")), "the store asks to slow down", True),
        (answered("503 Service Unavailable", ""), "the store asks to slow down", True),
        (answered("429 Too Many Requests", ""), "the store asks to slow down", True),
        (answered("500 Internal", of_code("InternalError")), "the endpoint answered 500 InternalError", True),
        (answered("507 Insufficient Storage", ""), "the store is full", False),
        (answered("418 Teapot", SECRET), "the endpoint answered 418", False),
        (answered("418 Teapot", f"<Code>{SECRET}</Code>"), "the endpoint answered 418", False),
        (http_error("Connect", 'code: 111, message: "Connection refused"'), "connection refused", False),
        (http_error("Connect", '"dns error"'), "the name of the endpoint is not known", False),
        (http_error("Connect", "InvalidCertificate(UnknownIssuer)"), "name its authority with AWS_CA_BUNDLE", False),
        (http_error("Connect", "InvalidMessage(InvalidContentType)"), "speaks no TLS", False),
        (http_error("Connect", "TimedOut"), "did not answer in time", False),
        (http_error("Connect", "something else"), "cannot be reached", False),
        (http_error("Timeout", "TimedOut"), "did not answer in time", True),
        (http_error("Request", "IncompleteMessage"), "the connection broke", True),
        (http_error("Interrupted", "IncompleteBody"), "the connection broke", True),
        (http_error("Unknown", "Parse(Version"), "no object store: look at the endpoint", False),
        ("Generic S3 error: Got invalid list response\nsource: InvalidListResponse {", "no object store", False),
        ("Received non-partial response\nsource: NotPartial,", "can't do ranges", False),
        (f"whatever {SECRET}", "the request failed (ValueError)", False),
    ],
)
def test_causes(text, words, passing):
    cause = cause_of(ValueError(text))
    assert words in cause.text
    assert cause.passing is passing
    assert not cause.wrong
    said = str(failure("cannot put s3://b/k", ValueError(text), "the endpoint is that of AWS_ENDPOINT_URL"))
    assert said.startswith("cannot put s3://b/k: ")
    for secret in (SECRET, "<", "Error>", "\n"):
        assert secret not in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (answered("404 Not Found", of_code("NoSuchKey")), "it is not there, though the store had said that it was written"),
        ("Generic S3 error: Requested 0..8192, got 0..4096", "bytes 0..8192 were asked for, bytes 0..4096 came"),
    ],
)
def test_answers_that_are_not_true(text, words):
    assert cause_of(ValueError(text)) == (words, False, True)


def test_what_botocore_has_read():
    error = ValueError(SECRET)
    error.response = {"Error": {"Code": "NoSuchBucket"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
    assert cause_of(error).text.startswith("there is no such bucket")
    error.response = {"Error": {"Code": f"<{SECRET}"}, "ResponseMetadata": {"HTTPStatusCode": 418}}
    assert cause_of(error).text == "the endpoint answered 418"


# -- s3://bucket/prefix


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://bucket", ObjectUrl("bucket")),
        ("s3://bucket/", ObjectUrl("bucket")),
        ("s3://my.bucket-1/a", ObjectUrl("my.bucket-1", "a")),
        ("s3://bucket/a/b=c_d+e/", ObjectUrl("bucket", "a/b=c_d+e")),
    ],
)
def test_urls(text, url):
    assert is_url(text)
    assert parse(text) == url
    assert parse(str(url)) == url


def test_keys_under_a_prefix():
    assert ObjectUrl("b", "x/y").key("k") == "x/y/k"
    assert ObjectUrl("b").key("k") == "k"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gs://bucket/x", "only s3://bucket/prefix is known"),
        ("file:///tmp", "only s3://bucket/prefix is known"),
        (f"s3://AKIA:{SECRET}@bucket/x", "never from the command line"),
        (f"s3://bucket/x?secret={SECRET}", "never from the command line"),
        ("s3://", "the name of a bucket"),
        ("s3://ab", "the name of a bucket"),
        ("s3://bucket:9000/x", "the name of a bucket"),
        ("s3://bucket/a//b", "between single slashes"),
        ("s3://bucket/../b", "begins with a dot"),
        ("s3://bucket/a b", "letters, digits"),
        ("s3://bucket/" + "a" * 801, "at most 800"),
    ],
)
def test_what_is_no_url_of_ours(text, words):
    with pytest.raises(UsageError, match=words) as caught:
        parse(text)
    assert SECRET not in str(caught.value)


@given(st.text(alphabet="ab-./:=+_@ ü", max_size=80))
def test_a_url_that_is_taken_is_itself_again(text):
    try:
        url = parse(f"s3://{text}")
    except UsageError:
        return
    assert parse(str(url)) == url
    assert "//" not in url.key("k")


def test_a_folder_is_no_url():
    assert not is_url("/scratch")
    assert not is_url("results")
