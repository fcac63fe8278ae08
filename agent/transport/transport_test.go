package transport

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

const patience = 20 * time.Second

// An authority is a CA of the tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	a.cert = a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, &key.PublicKey)
	return a
}

func (a *authority) sign(t *testing.T, c *x509.Certificate, pub *ecdsa.PublicKey) *x509.Certificate {
	c.SerialNumber = big.NewInt(clock.System.Now().UnixNano())
	c.NotBefore = clock.System.Now().Add(-time.Hour)
	if c.NotAfter.IsZero() {
		c.NotAfter = clock.System.Now().Add(time.Hour)
	}
	parent := a.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, a.key)
	if err != nil {
		t.Error(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Error(err)
	}
	return cert
}

func (a *authority) agent(t *testing.T, pub *ecdsa.PublicKey, host holdfast.HostID, until time.Time) []byte {
	return a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "host"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotAfter: until,
		URIs: []*url.URL{{Scheme: "holdfast", Opaque: "host:" + host.String()}},
	}, pub).Raw
}

// An appliance is a server with both protocols on one port.
type appliance struct {
	ca       *authority
	ln       net.Listener
	acceptor *wire.Acceptor
	secret   wire.AccessSecret
	host     holdfast.HostID
	streams  chan chan string // each open task stream takes lines; closing it ends the stream

	mu      sync.Mutex
	invs    []wire.Inventory
	reports []wire.Report
	refuse  *wire.Failure
}

func openAppliance(t *testing.T) *appliance {
	t.Helper()
	a := &appliance{ca: newAuthority(t), acceptor: wire.NewAcceptor(wire.LinkOptions{}), secret: wire.AccessSecret{1, 2, 3},
		host: holdfast.HostID{ID: holdfast.NewID()}, streams: make(chan chan string, 16)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server := a.ca.sign(t, &x509.Certificate{DNSNames: []string{wire.ServerName}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, &key.PublicKey)
	pool := x509.NewCertPool()
	pool.AddCert(a.ca.cert)
	a.ln, err = tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{wire.ALPNControl, wire.ALPNData}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool,
		Certificates: []tls.Certificate{{Certificate: [][]byte{server.Raw, a.ca.cert.Raw}, PrivateKey: key}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	srv := &http.Server{Handler: a.routes(t), TLSNextProto: nil}
	srv.TLSConfig = &tls.Config{NextProtos: []string{wire.ALPNControl}}
	control := &oneByOne{conns: make(chan net.Conn), done: ctx.Done(), addr: a.ln.Addr()}
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	srv.Protocols = &protocols
	wg.Go(func() { _ = srv.Serve(control) })
	wg.Go(func() {
		for {
			conn, err := a.ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				tc := conn.(*tls.Conn)
				if tc.HandshakeContext(ctx) != nil {
					conn.Close()
					return
				}
				if tc.ConnectionState().NegotiatedProtocol == wire.ALPNData {
					_ = a.acceptor.Serve(ctx, conn, a.host)
					return
				}
				select {
				case control.conns <- conn:
				case <-ctx.Done():
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		a.ln.Close()
		srv.Close()
		a.acceptor.Close()
		wg.Wait()
	})
	return a
}

// oneByOne is a listener of connections that were accepted elsewhere.
type oneByOne struct {
	conns chan net.Conn
	done  <-chan struct{}
	addr  net.Addr
}

func (l *oneByOne) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *oneByOne) Close() error   { return nil }
func (l *oneByOne) Addr() net.Addr { return l.addr }

func (a *appliance) routes(t *testing.T) http.Handler {
	fail := func(w http.ResponseWriter, status int, f wire.Failure) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(f)
	}
	known := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			a.mu.Lock()
			refuse := a.refuse
			a.mu.Unlock()
			switch {
			case len(r.TLS.VerifiedChains) == 0:
				w.WriteHeader(http.StatusUnauthorized)
			case refuse != nil:
				fail(w, http.StatusForbidden, *refuse)
			default:
				h(w, r)
			}
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+wire.PathEnroll, func(w http.ResponseWriter, r *http.Request) {
		var req wire.EnrollRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		if secret, _, err := wire.ParseAccessKey(req.Key); err != nil || secret != a.secret {
			fail(w, http.StatusForbidden, wire.Failure{Kind: holdfast.Permission, Message: "unknown key", Hint: "get another"})
			return
		}
		csr, err := x509.ParseCertificateRequest(req.CSR)
		if err != nil {
			t.Error(err)
			return
		}
		_ = json.NewEncoder(w).Encode(wire.EnrollResponse{
			Host: a.host, Name: req.Name, Certificate: a.ca.agent(t, csr.PublicKey.(*ecdsa.PublicKey), a.host, time.Time{}), CA: a.ca.cert.Raw,
		})
	})
	mux.HandleFunc("POST "+wire.PathInventory, known(func(w http.ResponseWriter, r *http.Request) {
		var inv wire.Inventory
		if err := json.NewDecoder(r.Body).Decode(&inv); err != nil {
			t.Error(err)
		}
		a.mu.Lock()
		a.invs = append(a.invs, inv)
		a.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	}))
	mux.HandleFunc("POST "+wire.PathReport, known(func(w http.ResponseWriter, r *http.Request) {
		var rs []wire.Report
		if err := json.NewDecoder(r.Body).Decode(&rs); err != nil {
			t.Error(err)
		}
		a.mu.Lock()
		a.reports = append(a.reports, rs...)
		a.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	}))
	mux.HandleFunc("GET "+wire.PathTasks, known(func(w http.ResponseWriter, r *http.Request) {
		lines := make(chan string)
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		a.streams <- lines
		for {
			select {
			case line, ok := <-lines:
				if !ok {
					return
				}
				fmt.Fprintln(w, line)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}))
	return mux
}

func (a *appliance) key() string {
	return wire.FormatAccessKey(a.secret, sha256.Sum256(a.ca.cert.Raw))
}

func (a *appliance) enroll(t *testing.T) Identity {
	t.Helper()
	id, err := Enroll(t.Context(), EnrollOptions{Server: a.ln.Addr().String(), Key: a.key(), Name: "host", Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// stream waits for the next task stream to be opened.
func (a *appliance) stream(t *testing.T) chan string {
	t.Helper()
	select {
	case s := <-a.streams:
		return s
	case <-time.After(patience):
		t.Fatal("no task stream was opened")
		return nil
	}
}

func TestEnrolledAgentsCanDoEverything(t *testing.T) {
	a := openAppliance(t)
	id := a.enroll(t)
	dir := filepath.Join(t.TempDir(), "deep", "agent")
	if err := id.Save(dir); err != nil {
		t.Fatal(err)
	}
	again, err := LoadIdentity(dir)
	if err != nil || !reflect.DeepEqual(id, again) || again.Host != a.host {
		t.Fatalf("%+v, %v", again, err)
	}
	if st, err := os.Stat(filepath.Join(dir, identityFile)); err != nil || st.Mode().Perm()&0o077 != 0 {
		t.Errorf("the identity is readable by others: %v, %v", st.Mode(), err)
	}
	c, err := New(again, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Inventory(t.Context(), wire.Inventory{Product: "lab"}); err != nil {
		t.Error(err)
	}
	if err := c.Report(t.Context(), []wire.Report{{Phase: "reading"}}); err != nil {
		t.Error(err)
	}
	if len(a.invs) != 1 || a.invs[0].Product != "lab" || len(a.reports) != 1 {
		t.Errorf("%+v %+v", a.invs, a.reports)
	}
	l, err := c.Dial(t.Context(), wire.LinkOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Send(t.Context(), wire.Message{Type: wire.TypeDone}); err != nil {
		t.Error(err)
	}
	peer, err := a.acceptor.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m, err := peer.Recv(t.Context()); err != nil || m.Type != wire.TypeDone {
		t.Error(m, err)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestEnrolmentIsRefused(t *testing.T) {
	a, other := openAppliance(t), openAppliance(t)
	server := a.ln.Addr().String()
	for name, c := range map[string]struct {
		server, key string
		kind        holdfast.Kind
	}{
		"mistyped key":      {server, a.key()[:20] + "7" + a.key()[21:], holdfast.Invalid},
		"another appliance": {other.ln.Addr().String(), a.key(), holdfast.Permission},
		"unknown key":       {server, wire.FormatAccessKey(wire.AccessSecret{9}, sha256.Sum256(a.ca.cert.Raw)), holdfast.Permission},
		"nobody there":      {"127.0.0.1:1", a.key(), holdfast.Offline},
	} {
		_, err := Enroll(t.Context(), EnrollOptions{Server: c.server, Key: c.key, Name: "host"})
		if holdfast.KindOf(err) != c.kind || holdfast.HintOf(err) == "" {
			t.Errorf("%s: %v (%v), advice %q", name, err, holdfast.KindOf(err), holdfast.HintOf(err))
		}
	}
}

func TestStrangersAreNotTrusted(t *testing.T) {
	a, other := openAppliance(t), openAppliance(t)
	id := a.enroll(t)
	check := func(name string, id Identity, kind holdfast.Kind) {
		t.Helper()
		c, err := New(id, nil)
		if err == nil {
			err = c.Inventory(t.Context(), wire.Inventory{})
		}
		if holdfast.KindOf(err) != kind {
			t.Errorf("%s: control: %v (%v)", name, err, holdfast.KindOf(err))
		}
		if c == nil {
			return
		}
		if _, err := c.Dial(t.Context(), wire.LinkOptions{}); err == nil {
			t.Errorf("%s: a link was opened", name)
		}
	}
	wrong := id
	wrong.Server = other.ln.Addr().String()
	check("server of another CA", wrong, holdfast.Permission)
	key, err := x509.ParsePKCS8PrivateKey(id.Key)
	if err != nil {
		t.Fatal(err)
	}
	pub := &key.(*ecdsa.PrivateKey).PublicKey
	foreign := id
	foreign.Certificate = other.ca.agent(t, pub, a.host, time.Time{})
	check("certificate of another CA", foreign, holdfast.Permission)
	old := id
	old.Certificate = a.ca.agent(t, pub, a.host, clock.System.Now().Add(-time.Minute))
	check("expired certificate", old, holdfast.Permission)
	broken := id
	broken.CA = []byte{1}
	check("broken identity", broken, holdfast.Corrupt)
}

func TestMissingAndBrokenIdentitiesAreTold(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadIdentity(dir); holdfast.KindOf(err) != holdfast.NotExist || holdfast.HintOf(err) == "" {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, identityFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadIdentity(dir); holdfast.KindOf(err) != holdfast.Corrupt {
		t.Error(err)
	}
}

// runClient runs a client; told gets what the handler is told.
func runClient(t *testing.T, c *Client) (told chan any, stop func()) {
	told = make(chan any, 64)
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() {
		over <- c.Run(ctx, Handler{
			Online:  func() { told <- "online" },
			Notice:  func(n wire.Notice) { told <- n },
			Offline: func(err error) { told <- err },
		})
	}()
	return told, func() {
		cancel()
		if err := <-over; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}
}

func next(t *testing.T, told chan any) any {
	t.Helper()
	select {
	case v := <-told:
		return v
	case <-time.After(patience):
		t.Fatal("the handler was told nothing")
		return nil
	}
}

// Goal: notices arrive, heartbeats do not; a stream that ends or is refused is opened again.
func TestTaskStreamIsKeptOpen(t *testing.T) {
	a := openAppliance(t)
	c, err := New(a.enroll(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	told, stop := runClient(t, c)
	defer stop()
	lines := a.stream(t)
	if v := next(t, told); v != "online" {
		t.Fatal(v)
	}
	lines <- "{}"
	lines <- `{"inventory":true}`
	if v := next(t, told); v != (wire.Notice{Inventory: true}) {
		t.Fatal(v)
	}
	close(lines)
	if err, ok := next(t, told).(error); !ok || holdfast.KindOf(err) != holdfast.Offline {
		t.Fatal(err)
	}
	lines = a.stream(t)
	if v := next(t, told); v != "online" {
		t.Fatal(v)
	}
	lines <- "not a notice"
	if err, ok := next(t, told).(error); !ok || holdfast.KindOf(err) != holdfast.Invalid {
		t.Fatal(err)
	}
	a.stream(t)
	next(t, told)
	a.mu.Lock()
	a.refuse = &wire.Failure{Kind: holdfast.Permission, Message: "this host was removed", Hint: "enrol again"}
	a.mu.Unlock()
	if err := c.Inventory(t.Context(), wire.Inventory{}); holdfast.KindOf(err) != holdfast.Permission || holdfast.HintOf(err) != "enrol again" {
		t.Error(err)
	}
}

// handClock is a clock whose long waits end only by hand.
type handClock struct {
	clock.Clock
	late chan (chan time.Time)
}

func (c handClock) After(d time.Duration) (<-chan time.Time, func()) {
	if d != silence {
		return c.Clock.After(d)
	}
	ch := make(chan time.Time, 1)
	select {
	case c.late <- ch:
	default:
	}
	return ch, func() {}
}

// Goal: a stream on which nothing comes any more counts as broken.
func TestSilentStreamsAreGivenUp(t *testing.T) {
	a := openAppliance(t)
	hands := handClock{clock.System, make(chan chan time.Time, 1)}
	c, err := New(a.enroll(t), hands)
	if err != nil {
		t.Fatal(err)
	}
	told, stop := runClient(t, c)
	defer stop()
	a.stream(t)
	if v := next(t, told); v != "online" {
		t.Fatal(v)
	}
	(<-hands.late) <- time.Time{}
	if err, ok := next(t, told).(error); !ok || holdfast.KindOf(err) != holdfast.Offline {
		t.Fatal(err)
	}
	a.stream(t)
	if v := next(t, told); v != "online" {
		t.Fatal(v)
	}
}
