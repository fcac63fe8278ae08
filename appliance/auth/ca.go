package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

const (
	caFile      = "ca.pem"       // the CA's certificate and key in one file, so that they cannot be torn apart
	revokedFile = "revoked.json" // ids of hosts whose certificates are worth nothing

	caLifetime     = 30 * 365 * 24 * time.Hour // longer than an appliance lives: agents pin it
	serverLifetime = 90 * 24 * time.Hour       // renewed in memory whenever a third is left
	agentLifetime  = 5 * 365 * 24 * time.Hour  // ended early by revoking the host
	backdate       = 24 * time.Hour            // a host whose clock is behind must still accept a fresh certificate

	maxStateFile = 4 << 20 // bytes of any file here; 100,000 revoked hosts fit
)

// An Authority is the appliance's certificate authority. Methods are safe for concurrent use.
type Authority struct {
	fs    fsys.FS
	dir   string
	clock clock.Clock
	key   *ecdsa.PrivateKey
	cert  *x509.Certificate
	pool  *x509.CertPool

	mu      sync.Mutex
	server  *tls.Certificate // current, nil before the first use
	revoked map[holdfast.HostID]bool
}

// Open opens the authority kept in dir, making a new CA if there is none yet.
func Open(files fsys.FS, dir string, c clock.Clock) (*Authority, error) {
	const op = "open certificate authority"
	a := &Authority{fs: files, dir: dir, clock: c, pool: x509.NewCertPool(), revoked: map[holdfast.HostID]bool{}}
	if err := files.MkdirAll(dir); err != nil {
		return nil, holdfast.Errorf(holdfast.KindOf(err), op, "%w", err)
	}
	b, err := fsys.ReadFile(files, path.Join(dir, caFile), maxStateFile)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = newCA(c.Now()); err == nil {
			err = fsys.Replace(files, path.Join(dir, caFile), b)
		}
	}
	if err != nil {
		return nil, holdfast.Errorf(holdfast.KindOf(err), op, "%w", err)
	}
	if a.cert, a.key, err = parseCA(b); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%s: %w", path.Join(dir, caFile), err).
			Advise("put the file back from a copy; without it every agent has to be enrolled again")
	}
	a.pool.AddCert(a.cert)
	if err := a.loadRevoked(); err != nil {
		return nil, err
	}
	return a, nil
}

func newCA(now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tpl := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "Holdfast appliance CA"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})), nil
}

func parseCA(b []byte) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	c, rest := pem.Decode(b)
	if c == nil || c.Type != "CERTIFICATE" {
		return nil, nil, errors.New("no certificate in it")
	}
	cert, err := x509.ParseCertificate(c.Bytes)
	if err != nil {
		return nil, nil, err
	}
	k, _ := pem.Decode(rest)
	if k == nil || k.Type != "PRIVATE KEY" {
		return nil, nil, errors.New("no private key in it")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(k.Bytes)
	if err != nil {
		return nil, nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, errors.New("key and certificate do not belong together")
	}
	return cert, key, nil
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}

// CA returns the CA's certificate in DER.
func (a *Authority) CA() []byte { return bytes.Clone(a.cert.Raw) }

// Fingerprint returns the SHA-256 of the CA's certificate.
func (a *Authority) Fingerprint() wire.Fingerprint { return sha256.Sum256(a.cert.Raw) }

// Expires returns when the current server certificate does.
func (a *Authority) Expires() time.Time {
	c, err := a.serverCertificate()
	if err != nil {
		return time.Time{}
	}
	return c.Leaf.NotAfter
}

// IssueAgent signs an agent's request. Of the request only the public key is used: names come from the appliance. The
// error is Invalid for a request that is no CSR, is not signed by its own key, or has a weak one.
func (a *Authority) IssueAgent(csr []byte, host holdfast.HostID, name string) ([]byte, error) {
	const op = "issue agent certificate"
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "%w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "the request is not signed by its own key: %w", err)
	}
	if !strongKey(req.PublicKey) {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "the key of the request is neither ECDSA P-256 or better nor Ed25519")
	}
	now := a.clock.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(agentLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{hostURI(host)},
	}, a.cert, req.PublicKey, a.key)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	return der, nil
}

// hostURI is the name in an agent's certificate that says which host it is.
func hostURI(host holdfast.HostID) *url.URL {
	return &url.URL{Scheme: "holdfast", Opaque: "host:" + host.String()}
}

// serverCertificate returns the current server certificate, issuing a new one when a third of its life is left. It is kept
// in memory only: agents trust the CA, so nothing is lost with it.
func (a *Authority) serverCertificate() (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.clock.Now()
	// The second half is for a clock that was set back.
	if a.server != nil && now.Add(serverLifetime/3).Before(a.server.Leaf.NotAfter) && now.After(a.server.Leaf.NotBefore) {
		return a.server, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	names := []string{wire.ServerName, "localhost"}
	if h, err := os.Hostname(); err == nil && h != "" && !slices.Contains(names, h) {
		names = append(names, h)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: wire.ServerName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(serverLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              names,
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	// The CA goes along, so that an agent that knows only its fingerprint can check the chain.
	a.server = &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf}
	return a.server, nil
}

// Revoke makes every certificate of a host worthless, durably and for good: a host that comes back is enrolled anew and gets
// another id.
func (a *Authority) Revoke(host holdfast.HostID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.revoked[host] {
		return nil
	}
	ids := []holdfast.HostID{host}
	for id := range a.revoked {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(x, y holdfast.HostID) int { return bytes.Compare(x.ID[:], y.ID[:]) })
	b, err := json.Marshal(ids)
	if err == nil {
		err = fsys.Replace(a.fs, path.Join(a.dir, revokedFile), b)
	}
	if err != nil {
		return holdfast.Errorf(holdfast.KindOf(err), "revoke host", "%w", err)
	}
	a.revoked[host] = true
	return nil
}

// Revoked tells whether the host's certificates are worthless.
func (a *Authority) Revoked(host holdfast.HostID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.revoked[host]
}

func (a *Authority) loadRevoked() error {
	const op = "read revoked hosts"
	b, err := fsys.ReadFile(a.fs, path.Join(a.dir, revokedFile), maxStateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	var ids []holdfast.HostID
	if err := json.Unmarshal(b, &ids); err != nil {
		return holdfast.Errorf(holdfast.Corrupt, op, "%w", err) // failing closed: a lost list would let revoked hosts in
	}
	for _, id := range ids {
		a.revoked[id] = true
	}
	return nil
}
