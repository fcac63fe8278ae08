package auth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// ServerConfig returns the TLS configuration of the appliance's one port: TLS 1.3 only, both protocols by ALPN, a client
// certificate asked for and, if given, of this CA and not expired (else the handshake fails). That a call needs a certificate
// at all is checked by the doors, because enrolment comes without one.
func (a *Authority) ServerConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{wire.ALPNData, wire.ALPNControl},
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  a.pool,
		Time:       a.clock.Now,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return a.serverCertificate()
		},
		// A resumed session would carry a certificate that was checked long ago.
		SessionTicketsDisabled: true,
	}
}

// Peer returns who is at the other end of a finished handshake: false where no certificate was given. The error is of kind
// Permission for a certificate of this CA that names no host, or one that was revoked.
func (a *Authority) Peer(cs tls.ConnectionState) (Principal, bool, error) {
	const op = "check certificate"
	if len(cs.VerifiedChains) == 0 {
		return Principal{}, false, nil
	}
	leaf := cs.VerifiedChains[0][0]
	host, ok := hostOf(leaf)
	if !ok {
		return Principal{}, false, holdfast.Errorf(holdfast.Permission, op, "the certificate names no host")
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
