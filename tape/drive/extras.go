package drive

import (
	"bytes"
	"context"
	"math/rand/v2"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

// Attributes reads the memory of a partition; Unsupported where the drive cannot.
func (d *Drive) Attributes(ctx context.Context, partition uint8) (map[uint16]scsi.Attribute, error) {
	b, err := d.do(ctx, scsi.Command{CDB: scsi.ReadAttribute(partition, 0, scsi.AttributesLen), In: make([]byte, scsi.AttributesLen)})
	if err != nil {
		return nil, err
	}
	as, err := scsi.ParseAttributes(b)
	out := map[uint16]scsi.Attribute{}
	for _, a := range as {
		out[a.ID] = a
	}
	return out, err
}

// SetAttributes writes to the memory of a partition.
func (d *Drive) SetAttributes(ctx context.Context, partition uint8, as ...scsi.Attribute) error {
	b := scsi.EncodeAttributes(as)
	_, err := d.do(ctx, scsi.Command{CDB: scsi.WriteAttribute(partition, len(b)), Out: b})
	return err
}

// MediumSerial returns the serial number in the medium's memory; empty where it cannot be read.
func (d *Drive) MediumSerial(ctx context.Context) (string, error) {
	if !d.caps.Memory {
		return "", nil
	}
	as, err := d.Attributes(ctx, 0)
	if err != nil {
		return "", err
	}
	a := as[scsi.AttrSerial]
	return a.Text(), nil
}

// Alerts returns the TapeAlert flags. Where the drive has the page that leaves them as they are, they stay for others; cleared says that it has not.
func (d *Drive) Alerts(ctx context.Context) (alerts []scsi.Alert, cleared bool, err error) {
	page := byte(scsi.LogTapeAlertResponse)
	b, err := d.do(ctx, scsi.Command{CDB: scsi.LogSense(page, 0, scsi.LogLen), In: make([]byte, scsi.LogLen)})
	if cannot(err) {
		page, cleared = scsi.LogTapeAlert, true
		b, err = d.do(ctx, scsi.Command{CDB: scsi.LogSense(page, 0, scsi.LogLen), In: make([]byte, scsi.LogLen)})
	}
	if cannot(err) {
		return nil, false, nil // a drive without TapeAlert has none to tell
	}
	if err != nil {
		return nil, cleared, err
	}
	alerts, err = scsi.ParseAlerts(page, b)
	return alerts, cleared, err
}

// SetKey has the drive encrypt and decrypt with a key of 32 bytes that is called by its descriptor, and asks back whether it does. A nil key
// switches encryption off. The key leaves the drive with the medium.
func (d *Drive) SetKey(ctx context.Context, key, descriptor []byte) error {
	const op = "set tape encryption"
	if d.caps.Encryption == 0 {
		if key == nil {
			return nil
		}
		return holdfast.Errorf(holdfast.Unsupported, op, "drive %s cannot encrypt", d.sn).Advise("use a drive that can, or encrypt the pool that the sets come from")
	}
	p := scsi.EncodeSetEncryption(scsi.Encryption{On: key != nil, Algorithm: d.caps.Encryption, Key: key, Descriptor: descriptor})
	defer clear(p)
	if _, err := d.do(ctx, scsi.Command{CDB: scsi.SecurityProtocolOut(scsi.ProtocolTapeEncryption, scsi.PageEncryptionCaps, len(p)), Out: p}); err != nil {
		return err
	}
	b, err := d.do(ctx, scsi.Command{CDB: scsi.SecurityProtocolIn(scsi.ProtocolTapeEncryption, scsi.PageEncryptionStatus, scsi.EncryptionLen), In: make([]byte, scsi.EncryptionLen)})
	if err != nil {
		return err
	}
	s, err := scsi.ParseKeyStatus(b)
	if err != nil {
		return err
	}
	if s.Encrypting != (key != nil) || s.Decrypting != (key != nil) || key != nil && !bytes.Equal(s.Descriptor, descriptor) {
		return holdfast.Errorf(holdfast.Invalid, op, "drive %s took the key and does not use it", d.sn)
	}
	return nil
}

// Reserve takes the drive for the holder of a key, so that other hosts are kept out. It reports false where the drive does not know
// reservations; Busy where another host has it.
func (d *Drive) Reserve(ctx context.Context, key uint64) (bool, error) {
	out := func(action, kind byte, mine, other uint64) error {
		_, err := d.do(ctx, scsi.Command{CDB: scsi.ReserveOut(action, kind), Out: scsi.ReserveParams(mine, other)})
		return err
	}
	if err := out(scsi.ReserveRegisterIgnore, 0, 0, key); cannot(err) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if err := out(scsi.ReserveReserve, scsi.ReserveExclusive, key, 0); err != nil {
		if holdfast.KindOf(err) == holdfast.Busy {
			return true, holdfast.Errorf(holdfast.Busy, "reserve tape drive", "drive %s is reserved by another host: %w", d.sn, err).Advise("end the other host's use of the drive")
		}
		return true, err
	}
	d.held = key
	return true, nil
}

// Release gives a reservation back.
func (d *Drive) Release(ctx context.Context) error {
	if d.held == 0 {
		return nil
	}
	key := d.held
	d.held = 0
	_, err := d.do(ctx, scsi.Command{CDB: scsi.ReserveOut(scsi.ReserveRegister, 0), Out: scsi.ReserveParams(key, 0)})
	return err
}

// A TestReport is what Test found.
type TestReport struct {
	Blocks  int          `json:"blocks"`
	Bytes   int64        `json:"bytes"`
	Alerts  []scsi.Alert `json:"alerts,omitempty"`
	Differs int          `json:"differs"` // blocks that came back otherwise
}

// Test writes n blocks of a size from the beginning of the medium and reads them back. Everything on the medium is lost: the caller has made sure that it is a scratch one.
func (d *Drive) Test(ctx context.Context, n, size int, seed uint64) (TestReport, error) {
	var r TestReport
	if err := d.Rewind(ctx); err != nil {
		return r, err
	}
	block := func(i int) []byte {
		rng, p := rand.New(rand.NewPCG(seed, uint64(i))), make([]byte, size)
		for j := range p {
			p[j] = byte(rng.Uint32())
		}
		return p
	}
	for i := range n {
		if err := d.Write(ctx, block(i)); err != nil {
			return r, err
		}
	}
	if err := d.Flush(ctx, 1); err != nil {
		return r, err
	}
	if err := d.Rewind(ctx); err != nil {
		return r, err
	}
	buf := make([]byte, size)
	for i := range n {
		k, err := d.Read(ctx, buf)
		if err != nil {
			return r, err
		}
		if !bytes.Equal(buf[:k], block(i)) {
			r.Differs++
		}
		r.Blocks, r.Bytes = r.Blocks+1, r.Bytes+int64(k)
	}
	var err error
	r.Alerts, _, err = d.Alerts(ctx)
	return r, err
}
