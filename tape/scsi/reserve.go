package scsi

// Persistent reservations.
const (
	ReserveReadKeys         = 0 // service actions of PERSISTENT RESERVE IN
	ReserveReadReservation  = 1
	ReserveRegister         = 0 // service actions of PERSISTENT RESERVE OUT
	ReserveReserve          = 1
	ReserveRelease          = 2
	ReserveClear            = 3
	ReservePreempt          = 4
	ReservePreemptAbort     = 5
	ReserveRegisterIgnore   = 6
	ReserveWriteExclusive   = 1 // types
	ReserveExclusive        = 3
	ReserveWriteRegistrants = 5
	ReserveRegistrants      = 6
	ReserveLen              = 4096
	reserveParams           = 24
	maxKeys                 = 256
)

// ReserveIn asks for n bytes about reservations.
func ReserveIn(action byte, n int) []byte {
	c := make([]byte, 10)
	c[0], c[1] = OpPersistentReserveIn, action
	be.PutUint16(c[7:], uint16(n))
	return c
}

// ReserveOut changes reservations; 24 bytes of parameters go with it.
func ReserveOut(action, kind byte) []byte {
	c := make([]byte, 10)
	c[0], c[1], c[2] = OpPersistentReserveOut, action, kind
	be.PutUint32(c[5:], reserveParams)
	return c
}

// ReserveParams returns the parameters of ReserveOut: the caller's key, and the one to be registered or preempted.
func ReserveParams(key, other uint64) []byte {
	b := make([]byte, reserveParams)
	be.PutUint64(b, key)
	be.PutUint64(b[8:], other)
	return b
}

// ParseKeys reads the registered keys.
func ParseKeys(b []byte) (keys []uint64, generation uint32, err error) {
	if len(b) < 8 {
		return nil, 0, corrupt("read reservation keys", "%d bytes", len(b))
	}
	n := int64(be.Uint32(b[4:]))
	generation, b = be.Uint32(b), b[8:]
	for b = b[:min(int64(len(b)), n)]; len(b) >= 8 && len(keys) < maxKeys; b = b[8:] {
		keys = append(keys, be.Uint64(b))
	}
	return keys, generation, nil
}

// ParseReservation reads who holds the reservation; ok is false if nobody does.
func ParseReservation(b []byte) (key uint64, kind byte, ok bool, err error) {
	if len(b) < 8 {
		return 0, 0, false, corrupt("read reservation", "%d bytes", len(b))
	}
	if be.Uint32(b[4:]) < 16 || len(b) < 24 {
		return 0, 0, false, nil
	}
	return be.Uint64(b[8:]), b[21] & 15, true, nil
}
