//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store/s3test"
)

// A gateway is the S3 server (versitygw, over TLS) that tools with a bucket use. Its folder is the repository, so its CPU time and memory are no tool's,
// and what it stores is counted as growth for all alike.
type gateway struct {
	*s3test.Server
	dir     string
	ends    []func()
	log     string // one line a request
	counted int64
	flags   []string // of pool create
	ca      string
	a       []string // buckets
}

var _ s3test.T = (*gateway)(nil)

// Helper, Fatalf, Logf, Cleanup and TempDir implement s3test.T.
func (g *gateway) Helper()                         {}
func (g *gateway) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (g *gateway) Fatalf(format string, args ...any) {
	panic(gatewayError(fmt.Sprintf(format, args...)))
}
func (g *gateway) Cleanup(f func()) { g.ends = append(g.ends, f) }
func (g *gateway) TempDir() string  { return g.dir }

type gatewayError string

// startGateway starts a server below dir with buckets.
func startGateway(dir string, buckets ...string) (g *gateway, err error) {
	g = &gateway{dir: filepath.Join(dir, "s3"), log: dir + ".requests", a: buckets}
	defer func() {
		if e := recover(); e != nil {
			text, ours := e.(gatewayError)
			if !ours {
				panic(e)
			}
			g.stop()
			err = fmt.Errorf("start S3 server: %s", string(text))
		}
	}()
	_ = os.Remove(g.log)
	if err := os.MkdirAll(g.dir, 0o755); err != nil {
		return g, err
	}
	g.Server = s3test.Start(g, "--access-log", g.log)
	g.flags = []string{"--kind", "object", "--endpoint", g.URL}
	for name, text := range map[string]string{"ca": string(g.CA.PEM), "access-key-file": g.AccessKey, "secret-key-file": g.SecretKey} {
		file := dir + "." + name
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return g, err
		}
		g.flags = append(g.flags, "--"+name, file)
	}
	g.ca = dir + ".ca"
	for _, b := range buckets {
		c := s3store.Config{Endpoint: g.URL, Bucket: b, CA: g.CA.PEM, AccessKey: s3store.Secret(g.AccessKey), SecretKey: s3store.Secret(g.SecretKey)}
		if err := s3store.MakeBucket(background, c, false); err != nil {
			return g, err
		}
		g.flags = append(g.flags, "--bucket", b)
	}
	g.requests()
	return g, nil
}

// requests returns how many requests the server has had since the last call, by its own log.
func (g *gateway) requests() int64 {
	b, err := os.ReadFile(g.log)
	if err != nil {
		return 0
	}
	all := int64(bytes.Count(b, []byte("\n")))
	n := all - g.counted
	g.counted = all
	return n
}

func (g *gateway) stop() {
	for _, f := range g.ends {
		f()
	}
	g.ends = nil
	for _, f := range []string{".ca", ".access-key-file", ".secret-key-file", ".requests"} {
		_ = os.Remove(strings.TrimSuffix(g.log, ".requests") + f)
	}
}

// poolKinds are the tools that are Holdfast with another kind of pool: the part after "holdfast-". None of them is encrypted but those whose peer is.
var poolKinds = map[string]bool{"s3": true, "s3-2+1": true, "standard": true, "plain": true, "4+2": true}

// place returns the flags that make the pool of a kind below dir, and starts a server where the kind needs one.
func (h *holdfast) place(dir string) ([]string, error) {
	at := func(name string) string { return filepath.Join(dir, name) }
	switch h.kind {
	case "standard", "plain":
		return []string{"--kind", map[string]string{"standard": "standard", "plain": "dedup"}[h.kind], "--path", at("pool")}, nil
	case "4+2":
		args := []string{"--kind", "dedup", "--stripe", "4+2"}
		for i := range 6 {
			args = append(args, "--path", at(fmt.Sprint("disk", i)))
		}
		return args, nil
	case "s3", "s3-2+1":
		buckets, more := []string{"bench"}, []string{"--encrypt"} // as restic does
		if h.kind != "s3" {
			buckets, more = []string{"bench-a", "bench-b", "bench-c"}, []string{"--encrypt", "--stripe", "2+1"}
		}
		var err error
		if h.s3, err = startGateway(dir, buckets...); err != nil {
			return nil, err
		}
		return append(h.s3.flags, more...), nil
	}
	return []string{"--kind", "dedup", "--path", at("pool"), "--encrypt"}, nil
}
