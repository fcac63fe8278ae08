package object

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
	"github.com/holdfast-backup/holdfast/pools/dedup"
)

// Config is the driver's configuration. Keys are given as files or, less well, inline; printed they are "***".
type Config struct {
	Endpoint      string         `json:"endpoint"` // URL of the S3 server
	Bucket        string         `json:"bucket,omitempty"`
	Prefix        string         `json:"prefix,omitempty"`        // folder of the bucket that the pool lives in
	Region        string         `json:"region,omitempty"`        // empty: asked of the server
	PathStyle     *bool          `json:"path_style,omitempty"`    // https://server/bucket rather than https://bucket.server; not set: by the endpoint
	StorageClass  string         `json:"storage_class,omitempty"` // of containers and everything else; empty: the bucket's own
	CAFile        string         `json:"ca_file,omitempty"`       // PEM certificates to trust beside the system's
	AccessKeyFile string         `json:"access_key_file,omitempty"`
	SecretKeyFile string         `json:"secret_key_file,omitempty"`
	AccessKey     s3store.Secret `json:"access_key,omitempty"`
	SecretKey     s3store.Secret `json:"secret_key,omitempty"`
	ObjectLock    string         `json:"object_lock,omitempty"`     // "compliance:30d": every new set is kept at least so long
	Timeout       string         `json:"request_timeout,omitempty"` // "90s": for a request without bytes, before it is given up and tried again; empty: a minute
	Quota         int64          `json:"quota,omitempty"`           // bytes that the pool may take; 0: no bound
	TakeOver      string         `json:"take_over,omitempty"`       // name of the appliance whose lease, once it ran out, is taken
	Buckets       []string       `json:"buckets,omitempty"`         // instead of Bucket, with Stripe: names, or URLs of buckets elsewhere (https://server/bucket)
	Stripe        string         `json:"stripe,omitempty"`          // "2+1": data and parity over the buckets
	Chunking      string         `json:"chunking,omitempty"`        // as holdfast.ParseChunking reads it; only Create looks at it
	dedup.Encryption
}

// maxKeyFile bounds a file with a key or certificates.
const maxKeyFile = 1 << 20

func readConfig(raw json.RawMessage) (Config, error) {
	var c Config
	if err := pools.DecodeConfig(raw, &c); err != nil {
		return c, err
	}
	if c.Quota < 0 {
		return c, holdfast.Errorf(holdfast.Invalid, "read pool config", "the quota is negative")
	}
	if _, err := parseLock(c.ObjectLock); err != nil {
		return c, err
	}
	if _, err := c.timeout(); err != nil {
		return c, err
	}
	_, err := c.targets()
	return c, err
}

// Bounds of a request's time.
const (
	leastTimeout = 100 * time.Millisecond
	mostTimeout  = 10 * time.Minute
)

// timeout reads Timeout; 0 means the default.
func (c Config) timeout() (time.Duration, error) {
	if c.Timeout == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(c.Timeout)
	if err != nil || d < leastTimeout || d > mostTimeout {
		return 0, holdfast.Errorf(holdfast.Invalid, "read pool config", "request_timeout %q", c.Timeout).Advise("write a time between %v and %v, such as 90s", leastTimeout, mostTimeout)
	}
	return d, nil
}

// encode is the inverse of readConfig, secrets included.
func (c Config) encode() (json.RawMessage, error) {
	m := map[string]any{}
	shown, err := json.Marshal(c) // keys come out as ***
	if err == nil {
		err = json.Unmarshal(shown, &m)
	}
	for key, secret := range map[string]s3store.Secret{"access_key": c.AccessKey, "secret_key": c.SecretKey} {
		if secret != "" {
			m[key] = secret.Reveal()
		}
	}
	var raw []byte
	if err == nil {
		raw, err = json.Marshal(m)
	}
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "encode pool config", "%w", err)
	}
	return raw, nil
}

// Redact returns a configuration that can be shown: keys are "***". What is no configuration of this driver comes back as null.
func Redact(raw json.RawMessage) json.RawMessage {
	var c Config
	if json.Unmarshal(raw, &c) != nil {
		return json.RawMessage("null")
	}
	out, err := json.Marshal(c)
	if err != nil {
		return json.RawMessage("null")
	}
	return out
}

// targets returns the names of the pool's buckets.
func (c Config) targets() ([]string, error) {
	k, m, err := dedup.ParseStripe(c.Stripe)
	switch {
	case err != nil:
		return nil, err
	case k == 0 && len(c.Buckets) == 0:
		return []string{c.Bucket}, nil
	case c.Bucket != "" || len(c.Buckets) != k+m:
		return nil, holdfast.Errorf(holdfast.Invalid, "read pool config", "stripe %q with %d buckets", c.Stripe, len(c.Buckets)).Advise("name as many buckets as the stripe has shards")
	}
	return c.Buckets, nil
}

// target returns where a bucket is, keys read.
func (c Config) target(bucket string) (s3store.Config, error) {
	if scheme, rest, ok := strings.Cut(bucket, "://"); ok {
		host, name, _ := strings.Cut(rest, "/")
		c.Endpoint, bucket = scheme+"://"+host, name
	}
	t := s3store.Config{Endpoint: c.Endpoint, Bucket: bucket, Prefix: c.Prefix, Region: c.Region, StorageClass: c.StorageClass, AccessKey: c.AccessKey, SecretKey: c.SecretKey}
	if c.PathStyle != nil {
		t.Style = s3store.HostStyle
		if *c.PathStyle {
			t.Style = s3store.PathStyle
		}
	}
	for _, k := range []struct {
		file string
		into *s3store.Secret
	}{{c.AccessKeyFile, &t.AccessKey}, {c.SecretKeyFile, &t.SecretKey}} {
		if k.file == "" {
			continue
		}
		if *k.into != "" {
			return t, holdfast.Errorf(holdfast.Invalid, "read pool config", "a key is given both inline and as the file %s", k.file)
		}
		b, err := readFile(k.file)
		if err != nil {
			return t, err
		}
		*k.into = s3store.Secret(bytes.TrimSpace(b))
	}
	var err error
	if t.Timeout, err = c.timeout(); err != nil {
		return t, err
	}
	if c.CAFile != "" {
		if t.CA, err = readFile(c.CAFile); err != nil {
			return t, err
		}
	}
	return t, nil
}

// readFile reads a small file of the appliance's.
func readFile(name string) ([]byte, error) {
	op := "read " + name
	f, err := os.Open(name)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "%w", err).Advise("give the file's whole path, and let the appliance read it")
	}
	defer func() { _ = f.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "%w", err)
	}
	if len(b) == 0 || len(b) > maxKeyFile {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "the file is empty or longer than a key or certificate")
	}
	return b, nil
}

// A lockRule is how long new sets are kept.
type lockRule struct {
	mode s3store.Mode // empty: not at all
	keep time.Duration
}

// maxKeep is the longest time of Object Lock.
const maxKeep = 100 * 365 * 24 * time.Hour

// parseLock reads "compliance:30d" or "governance:12h".
func parseLock(s string) (lockRule, error) {
	if s == "" {
		return lockRule{}, nil
	}
	mode, text, _ := strings.Cut(s, ":")
	var r lockRule
	var err error
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int
		if n, err = strconv.Atoi(days); err == nil && n <= int(maxKeep/(24*time.Hour)) {
			r.keep = time.Duration(n) * 24 * time.Hour
		}
	} else {
		r.keep, err = time.ParseDuration(text)
	}
	switch strings.ToLower(mode) {
	case "compliance":
		r.mode = s3store.Compliance
	case "governance":
		r.mode = s3store.Governance
	}
	if err != nil || r.mode == "" || r.keep <= 0 || r.keep > maxKeep {
		return lockRule{}, holdfast.Errorf(holdfast.Invalid, "read pool config", "object_lock %q: it is compliance or governance, a colon and a time", s).
			Advise("write compliance:30d or governance:12h")
	}
	return r, nil
}
