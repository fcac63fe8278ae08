package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// testClock stands still until it is moved.
type testClock struct{ now time.Time }

func (c *testClock) Now() time.Time { return c.now }
func (c *testClock) After(time.Duration) (<-chan time.Time, func()) {
	return make(chan time.Time), func() {}
}

func newAuthority(t *testing.T) (*Authority, *testClock, fsys.FS) {
	t.Helper()
	files, err := fsys.NewOS(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := &testClock{time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}
	a, err := Open(files, "ca", c)
	if err != nil {
		t.Fatal(err)
	}
	return a, c, files
}

// agentCert enrols a host with the authority, as an agent would.
func agentCert(t *testing.T, a *Authority, host holdfast.HostID, name string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "ignored"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.IssueAgent(csr, host, name)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// shake runs a handshake and one byte each way, and returns what each side saw.
func shake(t *testing.T, a *Authority, client *tls.Config) (cs tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	defer c.Close()
	srv, cli := tls.Server(s, a.ServerConfig()), tls.Client(c, client)
	done := make(chan error, 1)
	go func() {
		_, err := cli.Write([]byte{1})
		if err == nil {
			_, err = io.ReadFull(cli, make([]byte, 1))
		}
		c.Close()
		done <- err
	}()
	serverErr = srv.Handshake()
	if serverErr == nil {
		_, serverErr = io.ReadFull(srv, make([]byte, 1))
		_, _ = srv.Write([]byte{1})
	} else {
		s.Close()
	}
	return srv.ConnectionState(), serverErr, <-done
}

func clientConfig(a *Authority, c *testClock, cert *tls.Certificate) *tls.Config {
	conf := &tls.Config{RootCAs: a.pool, ServerName: wire.ServerName, NextProtos: []string{wire.ALPNData}, Time: func() time.Time { return c.now }}
	if cert != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return conf
}

// TestHandshakeLetsInOnlyOurOwn is the door's table: who gets through TLS, and as whom.
func TestHandshakeLetsInOnlyOurOwn(t *testing.T) {
	a, clk, _ := newAuthority(t)
	foreign, _, _ := newAuthority(t)
	host := holdfast.HostID{ID: holdfast.NewID()}
	gone := holdfast.HostID{ID: holdfast.NewID()}
	good, revoked := agentCert(t, a, host, "hv1"), agentCert(t, a, gone, "hv2")
	if err := a.Revoke(gone); err != nil {
		t.Fatal(err)
	}
	serverCert, err := a.serverCertificate()
	if err != nil {
		t.Fatal(err)
	}
	later := clk.now.Add(agentLifetime + time.Hour)
	for _, tc := range []struct {
		name       string
		at         time.Time
		client     func() *tls.Config
		serverErr  string
		clientErr  string
		peerOK     bool
		permission string // what Peer says
	}{
		{name: "an enrolled agent", client: func() *tls.Config { return clientConfig(a, clk, good) }, peerOK: true},
		{name: "no certificate, to enrol", client: func() *tls.Config { return clientConfig(a, clk, nil) }},
		{name: "a certificate of a foreign CA", client: func() *tls.Config { return clientConfig(a, clk, agentCert(t, foreign, host, "hv1")) },
			permission: "unknown authority"},
		{name: "the server's certificate used by a client", client: func() *tls.Config { return clientConfig(a, clk, serverCert) },
			permission: "incompatible key usage"},
		{name: "a revoked host", client: func() *tls.Config { return clientConfig(a, clk, revoked) }, permission: "was removed"},
		{name: "TLS 1.2", client: func() *tls.Config {
			c := clientConfig(a, clk, good)
			c.MaxVersion = tls.VersionTLS12
			return c
		}, serverErr: "unsupported versions", clientErr: "protocol version not supported"},
		{name: "a protocol of somebody else", client: func() *tls.Config {
			c := clientConfig(a, clk, good)
			c.NextProtos = []string{"imap"}
			return c
		}, serverErr: "unsupported application protocols", clientErr: "no application protocol"},
		{name: "a server of a foreign CA", client: func() *tls.Config { return clientConfig(foreign, clk, good) },
			serverErr: "bad certificate", clientErr: "unknown authority"},
		// Last, because the server renews its own certificate on the way.
		{name: "an expired certificate", at: later, client: func() *tls.Config { return clientConfig(a, clk, good) },
			permission: "is good from"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			defer func(old time.Time) { clk.now = old }(clk.now)
			if !tc.at.IsZero() {
				clk.now = tc.at
			}
			cs, serverErr, clientErr := shake(t, a, tc.client())
			match(t, "server", serverErr, tc.serverErr)
			match(t, "client", clientErr, tc.clientErr)
			if tc.serverErr != "" {
				return
			}
			p, ok, err := a.Peer(cs)
			match(t, "peer", err, tc.permission)
			if ok != tc.peerOK {
				t.Fatalf("peer %+v %v %v", p, ok, err)
			}
			if ok && (p.Host != host || p.Name != "hv1" || p.Role != Agent) {
				t.Fatalf("peer %+v", p)
			}
			if tc.permission != "" && holdfast.KindOf(err) != holdfast.Permission {
				t.Fatalf("error %v", err)
			}
		})
	}
}

func match(t *testing.T, side string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Fatalf("%s: %v", side, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Fatalf("%s: error %v, want one with %q", side, err, want)
	}
}

func TestAuthorityAndRevocationsSurviveReopening(t *testing.T) {
	a, clk, files := newAuthority(t)
	host := holdfast.HostID{ID: holdfast.NewID()}
	if err := a.Revoke(host); err != nil {
		t.Fatal(err)
	}
	b, err := Open(files, "ca", clk)
	if err != nil {
		t.Fatal(err)
	}
	if b.Fingerprint() != a.Fingerprint() || !b.Revoked(host) || b.Revoked(holdfast.HostID{ID: holdfast.NewID()}) {
		t.Fatal("the reopened authority differs")
	}
	if err := fsys.Replace(files, "ca/ca.pem", []byte("torn")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(files, "ca", clk); holdfast.KindOf(err) != holdfast.Corrupt {
		t.Fatalf("a damaged CA opens: %v", err)
	}
}

func TestServerCertificateIsRenewedBeforeItExpires(t *testing.T) {
	a, clk, _ := newAuthority(t)
	first, err := a.serverCertificate()
	if err != nil {
		t.Fatal(err)
	}
	clk.now = clk.now.Add(serverLifetime / 2)
	if c, err := a.serverCertificate(); err != nil || c != first {
		t.Fatalf("renewed too early, or %v", err)
	}
	clk.now = clk.now.Add(serverLifetime / 4)
	c, err := a.serverCertificate()
	if err != nil || c == first || !c.Leaf.NotAfter.After(clk.now.Add(serverLifetime/2)) {
		t.Fatalf("not renewed: %v", err)
	}
	clk.now = clk.now.Add(-serverLifetime)
	if c, err := a.serverCertificate(); err != nil || c.Leaf.NotBefore.After(clk.now) {
		t.Fatalf("not good for a clock that was set back: %v", err)
	}
}

func TestAccessKeyIsOfOneApplianceAndItsHashDoesNotShowIt(t *testing.T) {
	a, _, _ := newAuthority(t)
	b, _, _ := newAuthority(t)
	key, hash := a.NewAccessKey()
	if got, err := a.CheckAccessKey(key); err != nil || got != hash {
		t.Fatalf("%x %v", got, err)
	}
	if _, err := b.CheckAccessKey(key); holdfast.KindOf(err) != holdfast.Permission {
		t.Fatalf("another appliance takes the key: %v", err)
	}
	if _, err := a.CheckAccessKey("HF1-nonsense"); holdfast.KindOf(err) != holdfast.Invalid {
		t.Fatal(err)
	}
	secret, _, err := wire.ParseAccessKey(key)
	if err != nil || string(secret[:]) == string(hash[:20]) {
		t.Fatal("the hash shows the secret")
	}
}

func TestRequestsForCertificatesAreChecked(t *testing.T) {
	a, _, _ := newAuthority(t)
	weak, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	if err != nil {
		t.Fatal(err)
	}
	for name, req := range map[string][]byte{"empty": nil, "noise": []byte("noise"), "weak key": csr} {
		if _, err := a.IssueAgent(req, holdfast.HostID{ID: holdfast.NewID()}, "x"); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRequireTellsNobodyFromTheWrongRole(t *testing.T) {
	ctx := context.Background()
	if _, known, err := Require(ctx, Admin); known || !errors.Is(err, holdfast.Permission) {
		t.Fatal(known, err)
	}
	ctx = With(ctx, Principal{Role: Agent, Name: "hv1"})
	if _, known, err := Require(ctx, Admin); !known || !errors.Is(err, holdfast.Permission) {
		t.Fatal(known, err)
	}
	if p, _, err := Require(ctx, Agent); err != nil || p.Name != "hv1" {
		t.Fatal(p, err)
	}
}
