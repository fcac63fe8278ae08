package s3store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/holdfast-backup/holdfast"
)

// verdict is what an error code of S3 means for us.
type verdict struct {
	kind   holdfast.Kind
	advice string
}

const (
	adviseKeys = "check the access key and the secret key, and that the key is active"
	adviseBusy = "the server is busy or restarting: the work is tried again by itself; if this stays, look at the server"
	adviseSpan = "check the line to the server and anything that stands between"
)

// codes covers what servers answer in an error's Code. What is not here is judged by its HTTP status.
var codes = map[string]verdict{
	"NoSuchKey":                                      {holdfast.NotExist, ""},
	"NoSuchVersion":                                  {holdfast.NotExist, ""},
	"NoSuchBucket":                                   {holdfast.Invalid, "check the bucket's name, the endpoint and the region, or make the bucket"},
	"InvalidBucketName":                              {holdfast.Invalid, "check the bucket's name"},
	"BucketAlreadyOwnedByYou":                        {holdfast.Exist, "use the bucket that is there, or another name"},
	"BucketAlreadyExists":                            {holdfast.Exist, "bucket names are shared by all of the server's users: choose another"},
	"InvalidAccessKeyId":                             {holdfast.Permission, "the server does not know the access key: " + adviseKeys},
	"SignatureDoesNotMatch":                          {holdfast.Permission, "the secret key does not belong to the access key: " + adviseKeys},
	"InvalidToken":                                   {holdfast.Permission, adviseKeys},
	"InvalidClientTokenId":                           {holdfast.Permission, adviseKeys},
	"ExpiredToken":                                   {holdfast.Permission, "the session token has expired: give the pool new keys"},
	"ExpiredTokenException":                          {holdfast.Permission, "the session token has expired: give the pool new keys"},
	"AccessDenied":                                   {holdfast.Permission, "give the key the rights to list, read, write and delete in the bucket and its prefix"},
	"AllAccessDisabled":                              {holdfast.Permission, "the bucket is disabled: ask its provider"},
	"AccountProblem":                                 {holdfast.Permission, "the account is suspended: ask the provider"},
	"AuthorizationHeaderMalformed":                   {holdfast.Invalid, "set the pool's region to the bucket's"},
	"InvalidRegion":                                  {holdfast.Invalid, "set the pool's region to the bucket's"},
	"PermanentRedirect":                              {holdfast.Invalid, "the bucket is in another region: set endpoint and region to the bucket's"},
	"EntityTooLarge":                                 {holdfast.Invalid, "the server takes smaller objects only"},
	"InvalidStorageClass":                            {holdfast.Invalid, "the server does not have the pool's storage class: choose another"},
	"InvalidObjectState":                             {holdfast.Offline, "the object is in an archive class: restore it with the provider's tools first"},
	"PreconditionFailed":                             {holdfast.Exist, ""},
	"ConditionalRequestConflict":                     {holdfast.Transient, ""},
	"ExistingObjectIsDirectory":                      {holdfast.Transient, "the server keeps objects as files and has a folder of this name"}, // also met while it tidies its folders
	"OperationAborted":                               {holdfast.Transient, adviseBusy},
	"SlowDown":                                       {holdfast.Transient, adviseBusy},
	"SlowDownRead":                                   {holdfast.Transient, adviseBusy},
	"SlowDownWrite":                                  {holdfast.Transient, adviseBusy},
	"ServiceUnavailable":                             {holdfast.Transient, adviseBusy},
	"InternalError":                                  {holdfast.Transient, adviseBusy},
	"RequestTimeout":                                 {holdfast.Transient, adviseSpan},
	"Throttling":                                     {holdfast.Transient, adviseBusy},
	"ThrottlingException":                            {holdfast.Transient, adviseBusy},
	"RequestLimitExceeded":                           {holdfast.Transient, adviseBusy},
	"BadDigest":                                      {holdfast.Transient, adviseSpan}, // the bytes were damaged on the way; they are sent again
	"XAmzContentChecksumMismatch":                    {holdfast.Transient, adviseSpan},
	"IncompleteBody":                                 {holdfast.Transient, adviseSpan},
	"QuotaExceeded":                                  {holdfast.NoSpace, "raise the bucket's quota or free space"},
	"XMinioStorageFull":                              {holdfast.NoSpace, "free space on the server"},
	"XMinioAdminBucketQuotaExceeded":                 {holdfast.NoSpace, "raise the bucket's quota or free space"},
	"NotImplemented":                                 {holdfast.Unsupported, ""},
	"APINotSupported":                                {holdfast.Unsupported, ""},
	"MethodNotAllowed":                               {holdfast.Unsupported, ""},
	"ObjectLockConfigurationNotFoundError":           {holdfast.Unsupported, adviseLock},
	"NoSuchObjectLockConfiguration":                  {holdfast.Unsupported, adviseLock},
	"InvalidBucketObjectLockConfiguration":           {holdfast.Unsupported, adviseLock},
	"InvalidRetentionPeriod":                         {holdfast.Invalid, "the date must lie ahead, and not beyond the bucket's longest retention"},
	"XMinioObjectLockConfigurationNotFoundError":     {holdfast.Unsupported, adviseLock},
	"ReplicationConfigurationNotFoundError":          {holdfast.Unsupported, ""},
	"ServerSideEncryptionConfigurationNotFoundError": {holdfast.Unsupported, ""},
}

const adviseLock = "make a bucket with Object Lock enabled: most servers cannot enable it later"

// classify gives an error of the client its kind and advice; nil stays nil.
func (s *Store) classify(op string, err error) error {
	var known *holdfast.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	var answer minio.ErrorResponse
	if errors.As(err, &answer) {
		return s.refused(op, answer)
	}
	if e := untrusted(op, err); e != nil {
		return e
	}
	return s.unreached(op, err)
}

// refused judges an answer of the server.
func (s *Store) refused(op string, a minio.ErrorResponse) error {
	if a.Code == "RequestTimeTooSkewed" {
		return s.skewed(op, a)
	}
	if v, ok := codes[a.Code]; ok {
		e := holdfast.Errorf(v.kind, op, "%s: %w", a.Code, a)
		if v.advice != "" {
			e.Hint = v.advice
		}
		if a.Code == "NoSuchBucket" {
			e.Err = fmt.Errorf("there is no bucket %q: %w", s.c.Bucket, a)
		}
		return e
	}
	switch c := a.StatusCode; {
	case c == http.StatusNotFound:
		return holdfast.Errorf(holdfast.NotExist, op, "%w", a)
	case c == http.StatusForbidden, c == http.StatusUnauthorized:
		return holdfast.Errorf(holdfast.Permission, op, "%s: %w", a.Code, a).Advise("%s", codes["AccessDenied"].advice)
	case c == http.StatusRequestTimeout, c == http.StatusTooManyRequests, c >= 500 && c != http.StatusNotImplemented && c != http.StatusInsufficientStorage:
		return holdfast.Errorf(holdfast.Transient, op, "the server answers %d %s: %w", c, a.Code, a).Advise(adviseBusy)
	case c == http.StatusInsufficientStorage:
		return holdfast.Errorf(holdfast.NoSpace, op, "%w", a).Advise("free space on the server")
	case c == http.StatusNotImplemented:
		return holdfast.Errorf(holdfast.Unsupported, op, "%w", a)
	case c >= 300 && c < 400:
		return holdfast.Errorf(holdfast.Invalid, op, "the server sends us elsewhere (%d): %w", c, a).Advise("%s", codes["PermanentRedirect"].advice)
	case c >= 400:
		return holdfast.Errorf(holdfast.Invalid, op, "%s: %w", a.Code, a).Advise("check endpoint, region and bucket: is this an S3 server?")
	}
	return holdfast.Errorf(holdfast.Transient, op, "an answer that is not S3: %w", a).Advise(adviseSpan)
}

// skewed explains the refusal for a wrong clock with both clocks.
func (s *Store) skewed(op string, a minio.ErrorResponse) error {
	e := holdfast.Errorf(holdfast.Offline, op, "the server refuses our clock: %w", a)
	now := s.c.Clock.Now().UTC()
	if server, ok := s.t.serverTime(); ok {
		d := now.Sub(server).Round(time.Second)
		word := "ahead of"
		if d < 0 {
			d, word = -d, "behind"
		}
		return e.Advise("this machine's clock (%s) is %v %s the server's: set the wrong one, best by NTP", now.Format(time.RFC3339), d, word)
	}
	return e.Advise("this machine's clock says %s: set it and the server's, best by NTP", now.Format(time.RFC3339))
}

// untrusted judges what TLS refused, or returns nil.
func untrusted(op string, err error) error {
	var (
		invalid   x509.CertificateInvalidError
		unknown   x509.UnknownAuthorityError
		host      x509.HostnameError
		record    tls.RecordHeaderError
		alert     tls.AlertError
		rejection *tls.CertificateVerificationError
	)
	offline := func(what, advice string, args ...any) error {
		return holdfast.Errorf(holdfast.Offline, op, what+": %w", err).Advise(advice, args...)
	}
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return offline("the server's certificate is not valid now", "it is valid from %s to %s: renew it, or set this machine's clock",
			invalid.Cert.NotBefore.UTC().Format(time.DateOnly), invalid.Cert.NotAfter.UTC().Format(time.DateOnly))
	case errors.As(err, &unknown):
		return offline("the server's certificate is signed by a CA that is not trusted here", "give the pool the CA's certificate (--ca FILE)")
	case errors.As(err, &host):
		return offline("the server's certificate is for another name", "use the name in the certificate as the endpoint")
	case errors.As(err, &rejection):
		return offline("the server's certificate is refused", "look at the certificate: openssl s_client -connect HOST:PORT")
	case errors.As(err, &record):
		return offline("the server does not speak TLS", "use http:// in the endpoint if that is meant, or the server's TLS port")
	case errors.As(err, &alert):
		return offline("the server ended the TLS handshake", "check the server's TLS settings")
	}
	return nil
}

// unreached judges what happened before there was an answer.
func (s *Store) unreached(op string, err error) error {
	var (
		dns    *net.DNSError
		syntax *xml.SyntaxError
	)
	switch {
	case errors.Is(err, context.Canceled):
		return holdfast.Errorf(holdfast.Cancelled, op, "%w", err)
	case errors.As(err, &dns) && dns.IsNotFound:
		return holdfast.Errorf(holdfast.Offline, op, "%w", err).Advise("check the endpoint's name and the machine's DNS")
	case errors.Is(err, context.DeadlineExceeded):
		return holdfast.Errorf(holdfast.Transient, op, "the server did not answer in time: %w", err).Advise(adviseSpan)
	case errors.As(err, &syntax), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return holdfast.Errorf(holdfast.Transient, op, "the answer was cut off: %w", err).Advise(adviseSpan)
	}
	// What is left is the network: refused, reset, no route. A server's restart looks like this, so it is worth trying again.
	return holdfast.Errorf(holdfast.Transient, op, "the server is not reachable: %w", err).Advise("check that the server runs, and the line to it")
}

// cause returns the server's answer in a classified error, if that is what it came from.
func cause(err error) error {
	var a minio.ErrorResponse
	if errors.As(err, &a) {
		return a
	}
	return nil
}

func immutable(op string, held Lock, err error) error {
	return holdfast.Errorf(holdfast.Immutable, op, "the server keeps the object until %s (%s): %w", held.Until.UTC().Format(time.RFC3339), held.Mode, err).
		Advise("wait until the retention ends; nobody can shorten COMPLIANCE")
}
