package s3test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"
	"sync"
	"time"
)

// A Fate is what the proxy does to a request.
type Fate uint8

const (
	Answer     Fate = iota // do not forward; answer with Status, Code and Date
	Cut                    // read the request, forward nothing, close the connection
	LoseAnswer             // forward, and close the connection instead of answering
	Truncate               // forward, and close the connection in the middle of the answer's body
	Hang                   // forward nothing and never answer
	Twice                  // forward twice, answer with the second answer
	Hide                   // forward, and leave the keys that match Hidden out of a listing
	FlipBody               // flip a bit of the request's body before forwarding
	FlipAnswer             // flip a bit of the answer's body
)

// A Rule says which requests meet which fate.
type Rule struct {
	Method string // "" matches all
	Glob   string // path.Match on the last part of the path; "" matches all
	Query  string // a key that the query must have; "" asks for none
	Nth    int    // the how manyth match is the first, from 1; 0 means 1
	Times  int    // how many from there on; 0 means 1, -1 all
	Fate   Fate

	Status int       // for Answer
	Code   string    // for Answer: S3's error code
	Date   time.Time // for Answer: the server's clock; zero: the real one
	Hidden string    // for Hide: path.Match on the last part of a key
}

// A Proxy stands before a server and passes everything on but for what it was told to spoil. Requests stay signed as they were.
type Proxy struct {
	URL    string
	target *url.URL
	out    *http.Transport
	server *http.Server

	mu    sync.Mutex
	rules []*rule
}

type rule struct {
	Rule
	matched, hit int
}

// NewProxy starts a proxy before s, with a certificate of s's CA that is valid for so long (an hour if 0, expired if negative).
// It ends with the test.
func NewProxy(t T, s *Server, validFor time.Duration) *Proxy {
	t.Helper()
	cert, key := s.CA.Issue(t, cmp.Or(validFor, time.Hour))
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatalf("start proxy: %v", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(s.CA.cert)
	target, err := url.Parse(s.URL)
	if err != nil {
		t.Fatalf("start proxy: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("start proxy: %v", err)
	}
	p := &Proxy{URL: "https://" + l.Addr().String(), target: target, out: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableCompression: true}}
	p.server = &http.Server{Handler: http.HandlerFunc(p.serve), TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}} // HTTP/1.1, so that a connection is one request's
	ended := make(chan struct{})
	go func() {
		_ = p.server.ServeTLS(l, "", "") // ends with Close
		close(ended)
	}()
	t.Cleanup(func() {
		_ = p.server.Close()
		p.out.CloseIdleConnections()
		<-ended
	})
	return p
}

// Inject adds a rule. The function that it returns tells how often the rule has struck.
func (p *Proxy) Inject(r Rule) (struck func() int) {
	r.Nth, r.Times = max(r.Nth, 1), cmp.Or(r.Times, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	in := &rule{Rule: r}
	p.rules = append(p.rules, in)
	return func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return in.hit
	}
}

// Clear takes all rules away.
func (p *Proxy) Clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = nil
}

func (p *Proxy) strike(req *http.Request) *rule {
	p.mu.Lock()
	defer p.mu.Unlock()
	var first *rule
	for _, r := range p.rules {
		if r.Method != "" && r.Method != req.Method || r.Query != "" && !req.URL.Query().Has(r.Query) {
			continue
		}
		if ok, err := path.Match(cmp.Or(r.Glob, "*"), path.Base(req.URL.Path)); !ok || err != nil {
			continue
		}
		r.matched++
		if over := r.matched - r.Nth; first == nil && over >= 0 && (r.Times < 0 || over < r.Times) {
			r.hit++
			first = r
		}
	}
	return first
}

func (p *Proxy) serve(w http.ResponseWriter, req *http.Request) {
	r := p.strike(req)
	body, err := io.ReadAll(req.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // closes the connection, silently
	}
	if r == nil {
		p.pass(w, req, body, func(b []byte) []byte { return b })
		return
	}
	switch r.Fate {
	case Answer:
		r.answer(w)
	case Cut:
		panic(http.ErrAbortHandler)
	case LoseAnswer:
		if resp, err := p.forward(req, body); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		panic(http.ErrAbortHandler)
	case Truncate:
		p.truncate(w, req, body)
	case Hang:
		<-req.Context().Done()
		panic(http.ErrAbortHandler)
	case Twice:
		if resp, err := p.forward(req, body); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		p.pass(w, req, body, func(b []byte) []byte { return b })
	case Hide:
		p.pass(w, req, body, r.hide)
	case FlipBody:
		if len(body) > 0 {
			body[len(body)/2] ^= 0x10
		}
		p.pass(w, req, body, func(b []byte) []byte { return b })
	case FlipAnswer:
		p.pass(w, req, body, func(b []byte) []byte {
			if len(b) > 0 {
				b[len(b)/2] ^= 0x10
			}
			return b
		})
	}
}

func (r *rule) answer(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/xml")
	if !r.Date.IsZero() {
		w.Header().Set("Date", r.Date.UTC().Format(http.TimeFormat))
	}
	w.WriteHeader(r.Status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>%s, says the proxy.</Message></Error>`, r.Code, r.Code)
}

// forward sends the request on as it came: the signature covers its Host.
func (p *Proxy) forward(req *http.Request, body []byte) (*http.Response, error) {
	out := req.Clone(context.WithoutCancel(req.Context()))
	out.RequestURI, out.URL.Scheme, out.URL.Host = "", p.target.Scheme, p.target.Host
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	if len(body) == 0 {
		out.Body = http.NoBody
	}
	return p.out.RoundTrip(out)
}

// pass forwards and answers with what change makes of the answer.
func (p *Proxy) pass(w http.ResponseWriter, req *http.Request, body []byte, change func([]byte) []byte) {
	resp, err := p.forward(req, body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	changed := change(answer)
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	if len(changed) != len(answer) {
		w.Header().Del("Content-Length")
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(changed) // a client that went away is its own business
}

func (p *Proxy) truncate(w http.ResponseWriter, req *http.Request, body []byte) {
	resp, err := p.forward(req, body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(answer)))
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(answer[:len(answer)/2])
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	panic(http.ErrAbortHandler)
}

var (
	listed = regexp.MustCompile(`(?s)<(Contents|Version)>.*?</(Contents|Version)>`)
	keyed  = regexp.MustCompile(`<Key>(.*?)</Key>`)
)

// hide leaves keys out of a listing.
func (r *rule) hide(answer []byte) []byte {
	return listed.ReplaceAllFunc(answer, func(entry []byte) []byte {
		if m := keyed.FindSubmatch(entry); m != nil {
			key := strings.ReplaceAll(string(m[1]), "%2F", "/")
			if ok, err := path.Match(r.Hidden, path.Base(key)); ok && err == nil {
				return nil
			}
		}
		return entry
	})
}
