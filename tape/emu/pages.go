package emu

import (
	"bytes"
	"slices"

	"github.com/holdfast-backup/holdfast/tape/scsi"
)

var driveOps = []byte{scsi.OpTestUnitReady, scsi.OpRewind, scsi.OpRequestSense, scsi.OpFormatMedium, scsi.OpReadBlockLimits, scsi.OpRead6, scsi.OpWrite6,
	scsi.OpWriteFilemarks6, scsi.OpSpace6, scsi.OpInquiry, scsi.OpModeSelect6, scsi.OpErase6, scsi.OpModeSense6, scsi.OpLoadUnload, scsi.OpPreventAllow, scsi.OpLocate10,
	scsi.OpReadPosition, scsi.OpLogSense, scsi.OpModeSelect10, scsi.OpModeSense10, scsi.OpPersistentReserveIn, scsi.OpPersistentReserveOut, scsi.OpAllowOverwrite,
	scsi.OpReadAttribute, scsi.OpWriteAttribute, scsi.OpSpace16, scsi.OpLocate16, scsi.OpReportLUNs, scsi.OpSecurityProtocolIn, scsi.OpMaintenanceIn, scsi.OpSecurityProtocolOut}

func (d *drive) opcodes(cdb []byte) outcome {
	if cdb[1]&31 != scsi.ServiceReportOpcodes {
		return badField
	}
	b := make([]byte, 4)
	for _, op := range driveOps {
		if !slices.Contains(d.lib.o.Without, op) {
			b = append(b, op, 0, 0, 0, 0, 0, 0, 16)
		}
	}
	be.PutUint32(b, uint32(len(b)-4))
	return good(b...)
}

func (d *drive) logSense(cdb []byte) outcome {
	switch page := cdb[2] & 0x3f; {
	case page == scsi.LogTapeAlert:
		ps := make([]scsi.Param, 64)
		for i := range ps {
			v := byte(0)
			if slices.Contains(d.alerts, scsi.Alert(i+1)) {
				v = 1
			}
			ps[i] = scsi.Param{Code: uint16(i + 1), Value: []byte{v}}
		}
		d.alerts = nil // as the standard says: reading clears
		return good(scsi.EncodeLog(page, ps)...)
	case page == scsi.LogTapeAlertResponse && !d.lib.o.NoResponsePage:
		flags := uint64(0)
		for _, a := range d.alerts {
			flags |= 1 << (64 - a)
		}
		return good(scsi.EncodeLog(page, []scsi.Param{{Code: 0, Value: be.AppendUint64(nil, flags)}})...)
	}
	return badField
}

func (d *drive) modeSense(cdb []byte) outcome {
	pages := map[byte][]byte{
		scsi.ModeCompression:   append([]byte{0x40, 0x80, 0, 0, 0, 1, 0, 0, 0, 1}, make([]byte, 4)...),
		scsi.ModeConfiguration: make([]byte, 14),
		scsi.ModePartitions:    append([]byte{1, byte(d.addParts), 0x3c, 3, 9, 0}, make([]byte, 4)...),
		scsi.ModeMedium:        make([]byte, 30),
	}
	if d.compress {
		pages[scsi.ModeCompression][0] |= 0x80
	}
	flags, medium := byte(0x10), byte(0)
	if d.cart != nil {
		if d.cart.m.WORM {
			pages[scsi.ModeMedium][0], medium = 1, 1
		}
		if d.cart.m.Protected {
			flags |= 0x80
		}
		pages[scsi.ModePartitions][1] = byte(max(len(d.cart.parts)-1, d.addParts))
	}
	var body []byte
	for _, p := range []byte{scsi.ModeCompression, scsi.ModeConfiguration, scsi.ModePartitions, scsi.ModeMedium} {
		if want := cdb[2] & 0x3f; want == p || want == 0x3f {
			body = append(append(body, p, byte(len(pages[p]))), pages[p]...)
		}
	}
	if body == nil && cdb[2]&0x3f != 0 {
		return badField
	}
	desc := []byte{0x5e, 0, 0, 0, 0, 0, 0, 0}
	if cdb[0] == scsi.OpModeSense6 {
		return good(append(append([]byte{byte(3 + 8 + len(body)), medium, flags, 8}, desc...), body...)...)
	}
	return good(append(append([]byte{0, byte(6 + 8 + len(body)), medium, flags, 0, 0, 0, 8}, desc...), body...)...)
}

func (d *drive) modeSelect(b []byte, head int) outcome {
	bad := check(scsi.IllegalRequest, scsi.CodeInvalidParameter)
	if len(b) < head {
		return check(scsi.IllegalRequest, scsi.CodeParameterLength)
	}
	n := int(b[head-1])
	b = b[head:]
	if n > len(b) || n != 0 && n != 8 {
		return bad
	}
	if n == 8 && (b[5] != 0 || b[6] != 0 || b[7] != 0) {
		return bad // blocks of a fixed length: nobody here needs them
	}
	for b = b[n:]; len(b) >= 2; {
		k := 2 + int(b[1])
		if k > len(b) {
			return bad
		}
		switch body := b[2:k]; b[0] & 0x3f {
		case scsi.ModeCompression:
			d.compress = body[0]&0x80 != 0
		case scsi.ModePartitions:
			if len(body) < 10 || body[1] > 1 {
				return bad
			}
			d.addParts = int(body[1])
			if d.firstMiB = 0; body[4]&15 == 9 {
				d.firstMiB = int64(be.Uint16(body[6:])) * 1e9 >> 20
			}
		default:
			return bad
		}
		b = b[k:]
	}
	return good()
}

func (d *drive) readAttribute(cdb []byte) outcome {
	p := int(cdb[7])
	if cdb[1]&31 != 0 || p >= len(d.cart.parts) {
		return badField
	}
	as := d.cart.attributes(p, be.Uint16(cdb[8:]))
	if len(as) == 0 {
		return badField
	}
	return good(scsi.EncodeAttributes(as)...)
}

func (d *drive) writeAttribute(cdb, out []byte) outcome {
	p := int(cdb[7])
	as, err := scsi.ParseAttributes(out)
	if err != nil || p >= len(d.cart.parts) {
		return check(scsi.IllegalRequest, scsi.CodeInvalidParameter)
	}
	if d.cart.m.Protected {
		return check(scsi.DataProtect, scsi.CodeWriteProtected)
	}
	for _, a := range as {
		if a.ID < 0x0800 || a.ID >= 0x1800 { // the device's and the medium's
			return check(scsi.IllegalRequest, scsi.CodeInvalidParameter)
		}
	}
	for _, a := range as {
		if len(a.Value) == 0 {
			delete(d.cart.parts[p].memory, a.ID)
			continue
		}
		a.Value = bytes.Clone(a.Value)
		d.cart.parts[p].memory[a.ID] = a
	}
	return good()
}

func (d *drive) securityIn(cdb []byte) outcome {
	page := be.Uint16(cdb[2:])
	switch {
	case cdb[1] == 0 && page == 0:
		return good(0, 0, 0, 0, 0, 0, 0, 2, 0, scsi.ProtocolTapeEncryption)
	case cdb[1] != scsi.ProtocolTapeEncryption:
		return badField
	case page == scsi.PageEncryptionCaps:
		return good(scsi.EncodeAlgorithms([]scsi.Algorithm{{Index: 1, Code: scsi.AlgorithmAES256GCM, Encrypt: true, Decrypt: true, KeyLen: scsi.KeyLen}})...)
	case page == scsi.PageEncryptionStatus:
		s := scsi.KeyStatus{}
		if d.key != nil {
			s = scsi.KeyStatus{Encrypting: true, Decrypting: true, Algorithm: 1, Descriptor: d.key.descriptor}
		}
		return good(scsi.EncodeKeyStatus(s)...)
	}
	return badField
}

func (d *drive) securityOut(n *nexus, c scsi.Command) outcome {
	if c.CDB[1] != scsi.ProtocolTapeEncryption || be.Uint16(c.CDB[2:]) != scsi.PageEncryptionCaps {
		return badField
	}
	e, err := scsi.ParseSetEncryption(c.Out)
	if err != nil || e.On && e.Algorithm != 1 {
		return check(scsi.IllegalRequest, scsi.CodeInvalidParameter)
	}
	if d.key = nil; e.On {
		if d.key = newSealing(e); d.key == nil {
			return check(scsi.IllegalRequest, scsi.CodeInvalidParameter)
		}
	}
	n.unit.attention(scsi.CodeKeyChanged, n.initiator)
	return good()
}
