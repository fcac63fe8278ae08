package appliance_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/transport"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// refusedWith asserts an error's kind and words.
func refusedWith(t *testing.T, err error, kind holdfast.Kind, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("it was let in")
	}
	if holdfast.KindOf(err) != kind {
		t.Errorf("kind %v, want %v: %v", holdfast.KindOf(err), kind, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not say %q: %v", w, err)
		}
	}
	if holdfast.HintOf(err) == "" {
		t.Errorf("the error does not say what to do next: %v", err)
	}
}

// TestStrangersAreRefusedOnBothSides is the matrix of who is turned away: each hears why, each is recorded, and nobody gets further.
func TestStrangersAreRefusedOnBothSides(t *testing.T) {
	s, foreign := newSite(t), newSite(t)
	id := s.enroll("hv1")
	enroll := func(key string) error {
		_, err := transport.Enroll(t.Context(), transport.EnrollOptions{Server: s.addr, Key: key, Name: "x", Version: "test"})
		return err
	}
	call := func(id transport.Identity) error {
		c, err := transport.New(id, nil)
		s.ok(err)
		defer c.Close()
		return c.Report(t.Context(), nil)
	}
	dial := func(id transport.Identity) error {
		c, err := transport.New(id, nil)
		s.ok(err)
		defer c.Close()
		l, err := c.Dial(t.Context(), wire.LinkOptions{Window: time.Second})
		if err != nil {
			return err
		}
		defer l.Abort(holdfast.Errorf(holdfast.Cancelled, "", "the test is over"))
		if err := l.Send(t.Context(), wire.Message{Type: wire.TypeBegin, Body: wire.Begin{Task: holdfast.TaskID{ID: holdfast.NewID()}}}); err != nil {
			return err
		}
		m, err := l.Recv(t.Context())
		if f, ok := m.Body.(wire.Failure); ok {
			return f.AsError()
		}
		return err
	}
	s.ok(call(id))

	t.Run("wrong key", func(t *testing.T) {
		own, err := s.svc().EnrollHost(t.Context(), "never")
		s.ok(err)
		_, ca, err := wire.ParseAccessKey(own.Key)
		s.ok(err)
		var guess wire.AccessSecret
		_, _ = rand.Read(guess[:])
		refusedWith(t, enroll(wire.FormatAccessKey(guess, ca)), holdfast.Permission, "not known")
		s.recorded(holdfast.EventRefused, "enrolment", "not known")
	})
	t.Run("used key", func(t *testing.T) {
		k, err := s.svc().EnrollHost(t.Context(), "once")
		s.ok(err)
		s.ok(enroll(k.Key))
		refusedWith(t, enroll(k.Key), holdfast.Permission, "used already")
		s.recorded(holdfast.EventRefused, "used already")
	})
	t.Run("expired key", func(t *testing.T) {
		k, err := s.svc().EnrollHost(t.Context(), "late")
		s.ok(err)
		s.clock.offset.Store(int64(25 * time.Hour))
		defer s.clock.offset.Store(0)
		refusedWith(t, enroll(k.Key), holdfast.Permission, "expired")
		s.recorded(holdfast.EventRefused, "the key has expired")
	})
	t.Run("key of another appliance", func(t *testing.T) {
		k, err := foreign.svc().EnrollHost(t.Context(), "lost")
		s.ok(err)
		refusedWith(t, enroll(k.Key), holdfast.Permission, "not the appliance")
		s.recorded(holdfast.EventRefused, "TLS handshake")
	})
	t.Run("certificate of a foreign CA", func(t *testing.T) {
		other := foreign.enroll("hv1")
		other.Server, other.CA = s.addr, id.CA // it even knows our CA
		refusedWith(t, call(other), holdfast.Permission, "not an agent's of this appliance")
		refusedWith(t, dial(other), holdfast.Permission, "not an agent's of this appliance")
		s.recorded(holdfast.EventRefused, "unknown authority")
	})
	t.Run("agent that trusts another CA", func(t *testing.T) {
		mine := id
		mine.CA = foreign.enroll("hv9").CA
		refusedWith(t, call(mine), holdfast.Permission, "not the appliance")
	})
	t.Run("expired certificate", func(t *testing.T) {
		s.clock.offset.Store(int64(6 * 365 * 24 * time.Hour))
		defer s.clock.offset.Store(0)
		// The agent's own clock has not noticed; the server's certificate would not look good to it, so it does not look.
		answer, err := io.ReadAll(io.LimitReader(raw(t, s, id), 64<<10))
		if err != nil || len(answer) < 16 || wire.Type(answer[0]) != wire.TypeRefuse || !strings.Contains(string(answer), "is good from") {
			t.Errorf("the client hears %q, %v", answer, err)
		}
		s.recorded(holdfast.EventRefused, "is good from")
	})
	t.Run("certificate that was replaced", func(t *testing.T) {
		old := s.enroll("twice")
		s.ok(call(old))
		s.ok(call(s.enroll("twice")))
		refusedWith(t, call(old), holdfast.Permission, "enrolled anew")
		refusedWith(t, dial(old), holdfast.Permission, "enrolled anew")
		s.recorded(holdfast.EventRefused, "enrolled anew")
	})
	t.Run("removed host", func(t *testing.T) {
		gone := s.enroll("gone")
		s.ok(call(gone))
		_, err := s.svc().RemoveHost(t.Context(), "gone")
		s.ok(err)
		refusedWith(t, call(gone), holdfast.Permission, "removed")
		refusedWith(t, dial(gone), holdfast.Permission, "removed")
		s.recorded(holdfast.EventRefused, "removed")
		s.stop()
		s.start()
		refusedWith(t, call(gone), holdfast.Permission, "removed")
	})
	t.Run("task that is not the host's", func(t *testing.T) {
		refusedWith(t, dial(id), holdfast.Permission, "no task")
		s.recorded(holdfast.EventRefused, "no task")
	})
}

// raw opens a data connection with the host's certificate.
func raw(t *testing.T, s *site, id transport.Identity) *tls.Conn {
	t.Helper()
	key, err := x509.ParsePKCS8PrivateKey(id.Key)
	s.ok(err)
	c, err := tls.Dial("tcp", s.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{wire.ALPNData},
		Certificates: []tls.Certificate{{Certificate: [][]byte{id.Certificate}, PrivateKey: key}}})
	s.ok(err)
	s.ok(c.SetDeadline(clockNow().Add(20 * time.Second)))
	t.Cleanup(func() { c.Close() })
	return c
}

func clockNow() time.Time { return (&shifted{}).Now() }

// frame makes a frame as docs/formats/wire.md says, with any length field.
func frame(typ byte, length uint32, payload []byte) []byte {
	b := make([]byte, 16, 16+len(payload))
	b[0] = typ
	binary.LittleEndian.PutUint32(b[4:], length)
	table := crc32.MakeTable(crc32.Castagnoli)
	binary.LittleEndian.PutUint32(b[12:], crc32.Update(crc32.Update(0, table, payload), table, b[:12]))
	return append(b, payload...)
}

// TestBrokenDataConnectionsAreRefused sends what no agent sends, and reads the refusal.
func TestBrokenDataConnectionsAreRefused(t *testing.T) {
	s := newSite(t)
	id := s.enroll("hv1")
	hello := func(version uint16) []byte {
		p := append([]byte("HFDT"), 1)
		p = binary.LittleEndian.AppendUint16(p, version)
		return append(p, make([]byte, 16+32+8)...)
	}
	for _, c := range []struct {
		name, says string
		send       []byte
	}{
		{"oversized frame", "bytes", frame(byte(wire.TypeHello), 1<<31, nil)},
		{"unknown version", "version", frame(byte(wire.TypeHello), uint32(len(hello(999))), hello(999))},
		{"garbage", "", []byte(strings.Repeat("garbage!", 4))},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := raw(t, s, id)
			_, err := conn.Write(c.send)
			s.ok(err)
			answer, err := io.ReadAll(io.LimitReader(conn, 64<<10))
			if err != nil {
				t.Errorf("no clean end: %v", err)
			}
			if len(answer) < 16 || wire.Type(answer[0]) != wire.TypeRefuse || !strings.Contains(string(answer), c.says) {
				t.Errorf("the answer is %q", answer)
			}
			s.recorded(holdfast.EventRefused, c.says)
		})
	}
	t.Run("no certificate", func(t *testing.T) {
		conn, err := tls.Dial("tcp", s.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{wire.ALPNData}})
		s.ok(err)
		defer conn.Close()
		answer, err := io.ReadAll(io.LimitReader(conn, 64<<10))
		if err != nil || len(answer) < 16 || wire.Type(answer[0]) != wire.TypeRefuse {
			t.Errorf("%q, %v", answer, err)
		}
		s.recorded(holdfast.EventRefused, "needs a certificate")
	})
}

func TestPlaintextIsAnsweredInOneLineAndClosed(t *testing.T) {
	s := newSite(t)
	for name, send := range map[string]string{"HTTP": "GET /v1/sets HTTP/1.1\r\nHost: x\r\n\r\n", "something else": "\x00\x01\x02hello"} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", s.addr)
			s.ok(err)
			defer c.Close()
			s.ok(c.SetDeadline(clockNow().Add(5 * time.Second)))
			_, err = io.WriteString(c, send)
			s.ok(err)
			s.ok(c.(*net.TCPConn).CloseWrite())
			answer, err := io.ReadAll(c)
			if err != nil || !strings.Contains(string(answer), "TLS 1.3 only") || strings.Contains(string(answer), "holdfast-backup") {
				t.Errorf("%q, %v", answer, err)
			}
			if name == "HTTP" && !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
				t.Errorf("%q is no answer for a browser", answer)
			}
			s.recorded(holdfast.EventRefused, "in the clear")
		})
	}
}

// TestThePortOffersNothingToAdministratorsOrStrangers asks for everything the API has, on the port, without and with an agent's certificate.
func TestThePortOffersNothingToAdministratorsOrStrangers(t *testing.T) {
	s := newSite(t)
	id := s.enroll("hv1")
	key, err := x509.ParsePKCS8PrivateKey(id.Key)
	s.ok(err)
	for name, certs := range map[string][]tls.Certificate{"stranger": nil, "agent": {{Certificate: [][]byte{id.Certificate}, PrivateKey: key}}} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certs}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		for _, path := range []string{"/v1/sets", "/v1/pools", "/metrics", "/openapi.json", "/v1/health", "/"} {
			resp, err := (&http.Client{Transport: tr}).Get("https://" + s.addr + path)
			s.ok(err)
			body, err := io.ReadAll(resp.Body)
			s.ok(err)
			resp.Body.Close()
			want := 401
			if name == "agent" {
				want = 403
				if path == "/v1/health" {
					want = 200
				}
			}
			if resp.StatusCode != want || (want != 200 && strings.Contains(string(body), "main")) {
				t.Errorf("%s asks for %s: %d %s", name, path, resp.StatusCode, body)
			}
		}
	}
}

// TestEnrolmentTakesNoNameFromTheRequest: what a CSR says is of no weight, only its key is.
func TestEnrolmentTakesNoNameFromTheRequest(t *testing.T) {
	s := newSite(t)
	k, err := s.svc().EnrollHost(t.Context(), "hv7")
	s.ok(err)
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.ok(err)
	other := holdfast.HostID{ID: holdfast.NewID()}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{wire.ServerName, other.String()}}, priv)
	s.ok(err)
	resp, err := s.svc().Enroll(t.Context(), "127.0.0.1:1", wire.EnrollRequest{Key: k.Key, CSR: csr, Name: "root"})
	s.ok(err)
	leaf, err := x509.ParseCertificate(resp.Certificate)
	s.ok(err)
	if resp.Name != "hv7" || leaf.Subject.CommonName != "hv7" || len(leaf.DNSNames) != 0 || leaf.URIs[0].String() != wire.HostURIPrefix+resp.Host.String() {
		t.Errorf("%+v", leaf)
	}
	if _, err := s.svc().Enroll(t.Context(), "127.0.0.1:1", wire.EnrollRequest{Key: k.Key, CSR: csr}); holdfast.KindOf(err) != holdfast.Permission {
		t.Errorf("the key works twice: %v", err)
	}
}

// TestAccessKeysAreNotKept looks for the secret in everything the daemon wrote.
func TestAccessKeysAreNotKept(t *testing.T) {
	s := newSite(t)
	k, err := s.svc().EnrollHost(t.Context(), "hv1")
	s.ok(err)
	secret, _, err := wire.ParseAccessKey(k.Key)
	s.ok(err)
	_, err = transport.Enroll(t.Context(), transport.EnrollOptions{Server: s.addr, Key: k.Key, Name: "hv1", Version: "test"})
	s.ok(err)
	s.stop()
	s.ok(walkFiles(s.path("data"), func(name string, b []byte) {
		for what, bad := range map[string]string{"key": k.Key[4:40], "secret": string(secret[:]), "hash without domain": string(sum(secret[:]))} {
			if strings.Contains(string(b), bad) {
				t.Errorf("%s holds the %s", name, what)
			}
		}
	}))
	if strings.Contains(s.log.String(), k.Key[:40]) {
		t.Error("the log shows the key")
	}
}

func sum(b []byte) []byte { h := sha256.Sum256(b); return h[:] }

func walkFiles(dir string, f func(name string, b []byte)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := dir + "/" + e.Name()
		if e.IsDir() {
			if err := walkFiles(name, f); err != nil {
				return err
			}
			continue
		}
		if !e.Type().IsRegular() {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f(name, b)
	}
	return nil
}

// TestSocketIsForItsOwner checks the mode that is all the socket's protection.
func TestSocketIsForItsOwner(t *testing.T) {
	s := newSite(t)
	st, err := os.Stat(s.path("data/holdfastd.sock"))
	s.ok(err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.path("data/holdfastd.sock"))
	}}}
	resp, err := c.Get("http://x/v1/health")
	s.ok(err)
	defer resp.Body.Close()
	var h map[string]string
	s.ok(json.NewDecoder(resp.Body).Decode(&h))
	if fmt.Sprint(h) != "map[status:ok version:test]" {
		t.Errorf("%v", h)
	}
}
