package auth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// ServerConfig returns the TLS configuration of the appliance's one port: TLS 1.3 only, both protocols by ALPN, a client
// certificate asked for. Whether it is good is for Peer to say after the handshake: then the reason can be told in the peer's own protocol,
// where an alert of TLS would be lost or read as a network's whim. A peer gets no further by it than one without a certificate.
func (a *Authority) ServerConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{wire.ALPNData, wire.ALPNControl},
		ClientAuth: tls.RequestClientCert,
		Time:       a.clock.Now,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return a.serverCertificate()
		},
		// A resumed session would carry a certificate that was checked long ago.
		SessionTicketsDisabled: true,
	}
}

// Peer returns who is at the other end of a finished handshake, in which the peer proved that it has the certificate's key: false where no
// certificate was given. The error is of kind Permission for a certificate that is not of this CA, not an agent's, expired, or revoked.
func (a *Authority) Peer(cs tls.ConnectionState) (Principal, bool, error) {
	const op = "check certificate"
	const again = "enrol the agent again with a key from 'holdfast host enroll NAME'"
	if len(cs.PeerCertificates) == 0 {
		return Principal{}, false, nil
	}
	leaf, now := cs.PeerCertificates[0], a.clock.Now()
	_, err := leaf.Verify(x509.VerifyOptions{Roots: a.pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && leaf.CheckSignatureFrom(a.cert) == nil:
		return Principal{}, false, holdfast.Errorf(holdfast.Permission, op, "the certificate of %q is good from %s to %s, and here it is %s", leaf.Subject.CommonName,
			leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339)).Advise(again + "; are both clocks right?")
	default:
		return Principal{}, false, holdfast.Errorf(holdfast.Permission, op, "the certificate is not an agent's of this appliance: %w", err).Advise(again)
	}
	host, ok := hostOf(leaf)
	if !ok {
		return Principal{}, false, holdfast.Errorf(holdfast.Permission, op, "the certificate names no host").Advise(again)
	}
	p := Principal{Role: Agent, Host: host, Serial: SerialOf(leaf), Name: leaf.Subject.CommonName}
	if a.Revoked(host) {
		return p, false, holdfast.Errorf(holdfast.Permission, op, "host %q (%s) was removed from this appliance", p.Name, host).
			Advise("to let it back in, enrol it again with a new access key")
	}
	return p, true, nil
}

// SerialOf returns a certificate's serial number in hexadecimal.
func SerialOf(leaf *x509.Certificate) string { return leaf.SerialNumber.Text(16) }

func hostOf(leaf *x509.Certificate) (holdfast.HostID, bool) {
	if len(leaf.URIs) != 1 {
		return holdfast.HostID{}, false
	}
	text, ok := strings.CutPrefix(leaf.URIs[0].String(), wire.HostURIPrefix)
	if !ok {
		return holdfast.HostID{}, false
	}
	id, err := holdfast.ParseID(text)
	return holdfast.HostID{ID: id}, err == nil && !id.IsZero()
}

func strongKey(pub any) bool {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return k.Curve.Params().BitSize >= 256
	case ed25519.PublicKey:
		return true
	}
	return false
}
