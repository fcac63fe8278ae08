package transport

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// An Identity is what enrolment gave an agent: who it is, which appliance is its own, and how both prove it.
type Identity struct {
	Host        holdfast.HostID `json:"host"`
	Name        string          `json:"name"`
	Server      string          `json:"server"`      // host:port of the appliance
	Certificate []byte          `json:"certificate"` // the agent's, DER
	Key         []byte          `json:"key"`         // its private key, PKCS #8 DER; never leaves the host
	CA          []byte          `json:"ca"`          // the appliance's CA, DER: the only one trusted
}

// identityFile is readable by its owner alone.
const (
	identityFile     = "identity.json"
	maxIdentityBytes = 1 << 20
)

// Save writes the identity into the agent's data folder, which it makes if need be. After a crash the old identity or the new one
// is there.
func (id *Identity) Save(dir string) error {
	const op = "save identity"
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return holdfast.Errorf(holdfast.Permission, op, "%w", err)
	}
	if err := replaceFile(filepath.Join(dir, identityFile), append(b, '\n')); err != nil {
		return holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	return nil
}

// LoadIdentity reads what Save wrote. The error is NotExist where the agent was never enrolled.
func LoadIdentity(dir string) (Identity, error) {
	const op = "load identity"
	var id Identity
	name := filepath.Join(dir, identityFile)
	st, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return id, holdfast.Errorf(holdfast.NotExist, op, "this agent is not enrolled: there is no %s", name).
			Advise("run holdfast-agent enroll with a key from 'holdfast host enroll NAME'")
	}
	if err == nil && st.Size() > maxIdentityBytes {
		err = errors.New("the file is too long")
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(name)
	}
	if err == nil {
		err = json.Unmarshal(b, &id)
	}
	if err != nil {
		return id, holdfast.Errorf(holdfast.Corrupt, op, "%s: %w", name, err).Advise("enrol the agent again")
	}
	return id, nil
}

// replaceFile writes a file whole: temporary file, sync, rename, sync of the folder.
func replaceFile(name string, b []byte) error {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if runtime.GOOS == "windows" {
		return nil // a rename is durable with the file system's own journal; folders cannot be synced
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if e := d.Close(); err == nil {
		err = e
	}
	return err
}

// config returns the TLS configuration of an enrolled agent for a protocol.
func (id *Identity) config(c clock.Clock, alpn string) (*tls.Config, error) {
	const op = "use identity"
	ca, err := x509.ParseCertificate(id.CA)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "the appliance's CA: %w", err).Advise("enrol the agent again")
	}
	key, err := x509.ParsePKCS8PrivateKey(id.Key)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "the private key: %w", err).Advise("enrol the agent again")
	}
	leaf, err := x509.ParseCertificate(id.Certificate)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "the certificate: %w", err).Advise("enrol the agent again")
	}
	if c.Now().After(leaf.NotAfter) {
		return nil, holdfast.Errorf(holdfast.Permission, op, "this agent's certificate expired on %s", leaf.NotAfter.Format("2006-01-02")).
			Advise("enrol the agent again with a key from 'holdfast host enroll NAME'")
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		ServerName:   wire.ServerName,
		RootCAs:      roots,
		NextProtos:   []string{alpn},
		Time:         c.Now,
		Certificates: []tls.Certificate{{Certificate: [][]byte{id.Certificate}, PrivateKey: key, Leaf: leaf}},
	}, nil
}
