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
	"net/http"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// EnrollOptions says who enrols where.
type EnrollOptions struct {
	Server  string      // host:port of the appliance
	Key     string      // the one-time access key, as printed
	Name    string      // of this host
	Version string      // of the agent
	Clock   clock.Clock // nil: clock.System
}

// Enroll exchanges a one-time access key for an identity. The private key is made here and never leaves the host. The appliance is
// believed only if its CA is the one whose fingerprint the access key carries, so nothing is told to a stranger.
// Errors: Invalid for a mistyped key, Permission for one that the appliance does not accept or another appliance, Offline.
func Enroll(ctx context.Context, o EnrollOptions) (Identity, error) {
	const op = "enrol"
	if o.Clock == nil {
		o.Clock = clock.System
	}
	_, ca, err := wire.ParseAccessKey(o.Key)
	if err != nil {
		return Identity{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Identity{}, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Identity{}, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: o.Name}}, key)
	if err != nil {
		return Identity{}, holdfast.Errorf(holdfast.Invalid, op, "%w", err)
	}
	hc := newHTTP(pinned(o.Clock, ca))
	defer hc.CloseIdleConnections()
	c := &Client{server: o.Server, http: hc, clock: o.Clock}
	var resp wire.EnrollResponse
	req := wire.EnrollRequest{Key: o.Key, CSR: csr, Name: o.Name, Version: o.Version}
	if err := c.call(ctx, http.MethodPost, wire.PathEnroll, req, &resp); err != nil {
		return Identity{}, err
	}
	id := Identity{Host: resp.Host, Name: resp.Name, Server: o.Server, Certificate: resp.Certificate, Key: secret, CA: resp.CA}
	if sha256.Sum256(resp.CA) != ca {
		return Identity{}, holdfast.Errorf(holdfast.Permission, op, "the appliance answered with another CA than the access key's")
	}
	leaf, err := x509.ParseCertificate(resp.Certificate)
	if err != nil || !key.PublicKey.Equal(leaf.PublicKey) {
		return Identity{}, holdfast.Errorf(holdfast.Invalid, op, "the appliance's certificate does not fit this agent's key")
	}
	if _, err := id.config(o.Clock, wire.ALPNControl); err != nil {
		return Identity{}, err
	}
	return id, nil
}

// pinned returns a TLS configuration that trusts the CA with the fingerprint, which the server sends along.
func pinned(c clock.Clock, ca wire.Fingerprint) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         wire.ServerName,
		NextProtos:         []string{wire.ALPNControl},
		Time:               c.Now,
		InsecureSkipVerify: true, // VerifyConnection does it, with a CA that is known only now
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, cert := range cs.PeerCertificates[1:] {
				if sha256.Sum256(cert.Raw) != ca {
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(cert)
				_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: wire.ServerName, CurrentTime: c.Now()})
				return err
			}
			return holdfast.Errorf(holdfast.Permission, "check appliance", "the server is not the appliance that the access key is for").
				Advise("check the server's address and port; keys work only with the appliance that printed them")
		},
	}
}
