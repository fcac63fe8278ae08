// Package s3test gives tests a real S3 server on the loopback interface, over TLS with a CA of its own, and a proxy that spoils
// requests on command. The server is versitygw, built once per machine by scripts/tools.sh.
//
// It is for tests and checks of targets; nothing of it belongs in a product's path.
package s3test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast/internal/clock"
)

// T is what the helpers report to and clean up with. *testing.T and *testing.B are ones.
type T interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Cleanup(func())
	TempDir() string
}

// A CA issues certificates for 127.0.0.1 and localhost.
type CA struct {
	PEM  []byte // the CA's certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes a CA.
func NewCA(t T) *CA {
	t.Helper()
	now := clock.System.Now()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Holdfast test CA"}, NotBefore: now.Add(-24 * 365 * time.Hour),
		NotAfter: now.Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("make CA: %v", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatalf("make CA: %v", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("make CA: %v", err)
	}
	return &CA{PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), cert: cert, key: key}
}

// Issue returns a certificate that ends so long from now (before now if negative), with its key, as PEM.
func (ca *CA) Issue(t T, validFor time.Duration) (cert, key []byte) {
	t.Helper()
	now := clock.System.Now()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: now.Add(-48 * time.Hour),
		NotAfter: now.Add(validFor), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("issue certificate: %v", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &k.PublicKey, ca.key)
	if err != nil {
		t.Fatalf("issue certificate: %v", err)
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatalf("issue certificate: %v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

// A Server is a running S3 server.
type Server struct {
	URL                  string
	CA                   *CA
	AccessKey, SecretKey string
	Root                 string // the folder whose folders are the buckets
}

// startTries is how often another port is tried: between choosing and using one, somebody else may take it.
const startTries = 5

// Start builds versitygw if need be, starts it with versions and Object Lock available, waits until it answers, and ends it with
// the test. more are flags of versitygw's own.
func Start(t T, more ...string) *Server {
	t.Helper()
	binary := tool(t, "versitygw")
	s := &Server{CA: NewCA(t), AccessKey: "holdfast-test", SecretKey: "holdfast-test-secret-key"}
	dir := t.TempDir()
	cert, key := s.CA.Issue(t, time.Hour)
	s.Root = filepath.Join(dir, "buckets")
	for _, d := range []string{s.Root, filepath.Join(dir, "versions"), filepath.Join(dir, "iam")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatalf("start server: %v", err)
		}
	}
	for name, data := range map[string][]byte{"cert.pem": cert, "key.pem": key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatalf("start server: %v", err)
		}
	}
	var last string
	for range startTries {
		addr := freePort(t)
		args := append([]string{"--port", addr, "--cert", filepath.Join(dir, "cert.pem"), "--key", filepath.Join(dir, "key.pem"), "--quiet", "--keep-alive",
			"--iam-dir", filepath.Join(dir, "iam")}, more...)
		cmd := exec.Command(binary, append(args, "posix", "--versioning-dir", filepath.Join(dir, "versions"), s.Root)...)
		cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.AccessKey, "ROOT_SECRET_KEY="+s.SecretKey) // not where other users see it
		if last = run(t, cmd, addr, s.CA); last == "" {
			s.URL = "https://" + addr
			return s
		}
	}
	t.Fatalf("versitygw does not start: %s", last)
	return nil
}

// run starts the program and waits until it answers; else it returns what it said.
func run(t T, cmd *exec.Cmd, addr string, ca *CA) string {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	withParent(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatalf("start server: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended shows in its output
		close(ended)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: pool}}
	for {
		if c, err := dialer.DialContext(ctx, "tcp", addr); err == nil {
			_ = c.Close() // only tried
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				<-ended
			})
			return ""
		}
		pause, stop := clock.System.After(20 * time.Millisecond)
		select {
		case <-ended:
			return out.String()
		case <-ctx.Done():
			_ = cmd.Process.Kill()
			<-ended
			return "no answer in time: " + out.String()
		case <-pause:
		}
		stop()
	}
}

func freePort(t T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("find a port: %v", err)
	}
	defer l.Close()
	return l.Addr().String()
}

var building sync.Mutex

// tool returns the path of a program that scripts/tools.sh builds.
func tool(t T, name string) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	root, err := os.Getwd()
	if err != nil {
		t.Fatalf("find the module: %v", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		up := filepath.Dir(root)
		if up == root {
			t.Fatalf("find the module: no go.mod above the working folder")
		}
		root = up
	}
	cmd := exec.Command(filepath.Join(root, "scripts", "tools.sh"), name)
	var diag bytes.Buffer
	cmd.Stderr = &diag
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("scripts/tools.sh %s: %v\n%s", name, err, diag.String())
	}
	return strings.TrimSpace(string(out))
}

// String shows where the server is.
func (s *Server) String() string { return fmt.Sprintf("versitygw at %s", s.URL) }
