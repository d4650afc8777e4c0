#pragma once

// What differs between processors, floor 0, and is no matter of the operating system.

namespace pmr_debug::os {

/// Effects: tells the processor that this thread spins.
inline void relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield" ::: "memory");
#endif
}

}  // namespace pmr_debug::os
