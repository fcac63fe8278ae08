package scsi

import "time"

// How long commands may take. The values come from what LTO drives need at worst, not on average: a locate over the whole tape takes
// minutes, the first load of a new LTO-9 cartridge up to two hours, and a library that takes stock reads every bar code.
const (
	shortTimeout  = 60 * time.Second
	memoryTimeout = 180 * time.Second // medium memory and log pages: 60 s proved too short with LTO-9
	motionTimeout = 1200 * time.Second
	formatTimeout = 3240 * time.Second
	loadTimeout   = 7920 * time.Second
	eraseTimeout  = 24 * time.Hour // a long erase overwrites the whole tape
	robotTimeout  = 900 * time.Second
	stockTimeout  = 3600 * time.Second
)

// Timeout returns how long to wait for a command's answer.
func Timeout(cdb []byte) time.Duration {
	if len(cdb) == 0 {
		return shortTimeout
	}
	switch cdb[0] {
	case OpRead6, OpWrite6, OpWriteFilemarks6, OpSpace6, OpSpace16, OpLocate10, OpLocate16, OpRewind:
		return motionTimeout
	case OpLoadUnload:
		return loadTimeout
	case OpFormatMedium:
		return formatTimeout
	case OpErase6:
		return eraseTimeout
	case OpReadAttribute, OpWriteAttribute, OpLogSense:
		return memoryTimeout
	case OpMoveMedium, OpExchangeMedium, OpReadElementStatus:
		return robotTimeout
	case OpInitElementStatus, OpInitElementRange:
		return stockTimeout
	}
	return shortTimeout
}
