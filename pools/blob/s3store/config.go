// Package s3store keeps objects in a bucket of a server that speaks S3. It is the only home of minio-go.
//
// Every object is one PUT request with the bytes' CRC-32C, so that there is no half-written object, no multipart upload to clean
// up, and no damage on the way that the server would not notice. An object is buffered before it is sent: in memory, above 8 MiB
// in a file of Config.Spill. So a PUT can be sent again; and because its answer may be lost where its bytes were not, the
// server is asked first whether the object is there.
//
// A crash of this process leaves an object whole or not there, and a spill file that the next Open removes.
// Where the bucket keeps versions, Remove takes all versions of the object, because a delete marker frees no space.
// A name that is missing in a listing may be there: listings of some servers are behind. Exists asks for the object itself, and
// looks whether it is the bucket that is missing before it says no.
package s3store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

// A Secret is a string that does not show itself: however it is printed or encoded, it comes out as "***".
type Secret string

const hidden = "***"

// Format implements fmt.Formatter: every verb prints ***.
func (Secret) Format(w fmt.State, _ rune) { _, _ = w.Write([]byte(hidden)) } // a fmt.State keeps its own errors

// String implements fmt.Stringer.
func (Secret) String() string { return hidden }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return hidden }

// MarshalText implements encoding.TextMarshaler, and so covers JSON, TOML and log/slog.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Reveal returns the secret itself, for the place that signs with it.
func (s Secret) Reveal() string { return string(s) }

// A Style is how a bucket is named in a request.
type Style uint8

const (
	AutoStyle Style = iota // host style for the big providers, path style elsewhere
	PathStyle              // https://server/bucket/name
	HostStyle              // https://bucket.server/name
)

// Config says which bucket, and how to reach it.
type Config struct {
	Endpoint     string // URL with scheme: https://s3.example.com:9000. http:// is possible and sends the data in the open
	Bucket       string
	Prefix       string // folder of the bucket that the pool lives in, as an object's name; may be empty
	Region       string // empty: asked of the server
	Style        Style
	StorageClass string // of new objects; empty: the bucket's own

	AccessKey, SecretKey, SessionToken Secret
	CA                                 []byte // PEM certificates to trust beside the system's; may be empty

	Spill     fsys.FS // where objects above 8 MiB wait to be sent; nil: in memory. One open Store may use it
	MaxObject int64   // a longer object is refused; 0 means 256 MiB

	Retry   blob.Policy    // for sending objects; the zero value means blob.DefaultPolicy
	Timeout time.Duration  // for a request without bytes, 0 means 1 min; bytes get time at 256 KiB/s on top
	Clock   clock.Clock    // nil means the system's
	Count   *blob.Requests // counts HTTP requests and the bytes in them; may be nil
}

const (
	defaultMaxObject = 256 << 20
	maxSinglePut     = 5 << 30 // what S3 takes in one PUT
	defaultTimeout   = time.Minute
	slowestLine      = 256 << 10 // bytes a second below which a request is given up
)

// normal returns the configuration with its defaults, or what is wrong with it.
func (c Config) normal() (Config, *url.URL, error) {
	bad := func(format string, args ...any) (Config, *url.URL, error) {
		return c, nil, holdfast.Errorf(holdfast.Invalid, "open bucket", format, args...)
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.Path != "" && u.Path != "/" || u.User != nil || u.RawQuery != "" {
		// The endpoint is not quoted: somebody may have put a key into it.
		return bad("the endpoint is not a URL like https://s3.example.com or https://10.0.0.5:9000")
	}
	if err := s3utils.CheckValidBucketName(c.Bucket); err != nil {
		return c, nil, holdfast.Errorf(holdfast.Invalid, "open bucket", "%w", err).Advise("check the bucket's name")
	}
	if c.AccessKey == "" || c.SecretKey == "" {
		return bad("the access key or the secret key is missing")
	}
	c.Prefix = strings.Trim(c.Prefix, "/")
	if err := blob.CheckFolder(c.Prefix); err != nil {
		return c, nil, err
	}
	if c.MaxObject <= 0 {
		c.MaxObject = defaultMaxObject
	}
	c.MaxObject = min(c.MaxObject, maxSinglePut)
	if c.Retry == (blob.Policy{}) {
		c.Retry = blob.DefaultPolicy
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if c.Clock == nil {
		c.Clock = clock.System
	}
	return c, u, nil
}

// client makes the client for a configuration.
func client(c Config, u *url.URL) (*minio.Core, *transport, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a system without certificates: only the own ones count
	}
	if len(c.CA) > 0 && !pool.AppendCertsFromPEM(c.CA) {
		return nil, nil, holdfast.Errorf(holdfast.Invalid, "open bucket", "the CA file has no PEM certificate")
	}
	inner := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		MaxIdleConnsPerHost: 32,
		IdleConnTimeout:     time.Minute,
		TLSHandshakeTimeout: 15 * time.Second,
		DisableCompression:  true,
		ForceAttemptHTTP2:   false, // several connections carry more than one
	}
	t := &transport{inner: inner, count: c.Count, timeout: c.Timeout}
	style := map[Style]minio.BucketLookupType{AutoStyle: minio.BucketLookupAuto, PathStyle: minio.BucketLookupPath, HostStyle: minio.BucketLookupDNS}[c.Style]
	core, err := minio.NewCore(u.Host, &minio.Options{
		Creds:        credentials.NewStaticV4(c.AccessKey.Reveal(), c.SecretKey.Reveal(), c.SessionToken.Reveal()),
		Secure:       u.Scheme == "https",
		Transport:    t,
		Region:       c.Region,
		BucketLookup: style,
		MaxRetries:   1, // retrying is blob.Retry's and Commit's, who know what may be sent twice
	})
	if err != nil {
		inner.CloseIdleConnections()
		return nil, nil, holdfast.Errorf(holdfast.Invalid, "open bucket", "%w", err)
	}
	return core, t, nil
}

// Open reaches for the bucket, checks that the keys may list it, and returns it as a store. It fails with kind Invalid for a
// bucket that is not there or a request that will stay wrong, Permission for wrong keys, Offline where the server
// cannot be talked to safely or at all, Transient where it is only busy; with advice.
func Open(ctx context.Context, c Config) (*Store, error) {
	c, u, err := c.normal()
	if err != nil {
		return nil, err
	}
	core, t, err := client(c, u)
	if err != nil {
		return nil, err
	}
	s := &Store{c: c, core: core, t: t, prefix: c.Prefix}
	if s.prefix != "" {
		s.prefix += "/"
	}
	if err := s.begin(ctx); err != nil {
		t.inner.CloseIdleConnections()
		return nil, err
	}
	return s, nil
}

// begin asks what the bucket can do and clears the spill folder.
func (s *Store) begin(ctx context.Context) error {
	if err := s.probe(ctx, "open bucket"); err != nil {
		return err
	}
	ctx, done := s.limit(ctx, 0)
	defer done()
	v, err := s.core.GetBucketVersioning(ctx, s.c.Bucket)
	switch err := s.classify("ask for versioning", err); {
	case err == nil:
		s.versioned = v.Status != ""
	case unanswered(err):
	default:
		return err
	}
	if s.versioned {
		lock, _, _, _, err := s.core.GetObjectLockConfig(ctx, s.c.Bucket)
		if err := s.classify("ask for object lock", err); err != nil && !unanswered(err) && !errors.Is(err, holdfast.NotExist) {
			return err
		}
		s.locks = err == nil && lock == "Enabled"
	}
	return s.clearSpill()
}

// unanswered is what a key without the right to ask, or a server without the feature, answers.
func unanswered(err error) bool {
	return errors.Is(err, holdfast.Permission) || errors.Is(err, holdfast.Unsupported)
}

// MakeBucket makes the configured bucket, with Object Lock (and so versions) if asked for. It fails with kind Exist if there is
// one.
func MakeBucket(ctx context.Context, c Config, objectLock bool) error {
	c, u, err := c.normal()
	if err != nil {
		return err
	}
	core, t, err := client(c, u)
	if err != nil {
		return err
	}
	defer t.inner.CloseIdleConnections()
	s := &Store{c: c, core: core, t: t}
	ctx, done := s.limit(ctx, 0)
	defer done()
	return s.classify("make bucket", core.MakeBucket(ctx, c.Bucket, minio.MakeBucketOptions{Region: c.Region, ObjectLocking: objectLock}))
}
