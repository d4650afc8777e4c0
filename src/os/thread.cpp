#include "os/thread.hpp"

#include "os/guarded.hpp"
#include "os/processor.hpp"
#include "os/quiet.hpp"
#include "os/start_code.hpp"
#include "os/thread_end.hpp"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <mutex>

namespace pmr_debug::os {

namespace {

// Indices in use, a bit each. Constant-initialised, so usable before any constructor ran.
constexpr std::uint32_t index_words = (max_thread_index + 1) / 64;
struct thread_facts {
    std::atomic<std::uint64_t> index_bits[index_words]{};
    std::atomic<std::uint32_t> last_number{1};
    std::atomic<void (*)() noexcept> on_new_thread{nullptr};
};
constinit guarded<thread_facts> facts;
const guard_pages facts_guards(facts);
constexpr auto& index_bits = facts->index_bits;
constexpr auto& last_number = facts->last_number;

// A pthread key instead of a thread_local with a destructor: registering the latter allocates from the heap.
pthread_key_t exit_key{};
pthread_once_t exit_key_once = PTHREAD_ONCE_INIT;
constinit std::atomic<bool> exit_key_valid{false};

constinit thread_local bool ending __attribute__((tls_model("initial-exec"))) = false;

// The main thread is number 1, whoever comes first.
constinit std::atomic<bool> main_is_numbered{false};

// The process that the indices in use were given out in.
constinit std::atomic<pid_t> counted_in{0};

std::uint32_t new_number() noexcept {
    pid_t nobody = 0;
    counted_in.compare_exchange_strong(nobody, ::getpid(), std::memory_order_relaxed);
    const bool is_main = ::syscall(SYS_gettid) == ::getpid();
    if (is_main && !main_is_numbered.exchange(true, std::memory_order_relaxed)) {
        return 1;
    }
    return last_number.fetch_add(1, std::memory_order_relaxed) + 1;
}

void release_index(void* value) noexcept {
    const auto index = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(value));
    // Destructors of other keys may run later. They go by the shared index, as nobody would give another one back.
    detail::current_thread.index = 0;
    ending = true;
    if (const auto tell = detail::on_index_released.load(std::memory_order_acquire); tell != nullptr) {
        tell();
    }
    if (!is_shared_index(index)) {
        index_bits[index / 64].fetch_and(~(std::uint64_t{1} << (index % 64)), std::memory_order_release);
    }
}

std::uint32_t take_index() noexcept {
    for (std::uint32_t word = 0; word < index_words; ++word) {
        // The first index means none, and the last one is shared by whoever finds no other.
        const std::uint64_t reserved =
            (word == 0 ? std::uint64_t{1} : 0) | (word == index_words - 1 ? std::uint64_t{1} << 63 : 0);
        std::uint64_t bits = index_bits[word].load(std::memory_order_relaxed);
        for (;;) {
            const std::uint64_t free = ~(bits | reserved);
            if (free == 0) {
                break;
            }
            const std::uint64_t bit = free & (~free + 1);
            // acquire pairs with the release in release_index: the new owner sees the old one's last writes.
            if (index_bits[word].compare_exchange_weak(bits, bits | bit, std::memory_order_acq_rel)) {
                return word * 64 + static_cast<std::uint32_t>(__builtin_ctzll(bit));
            }
        }
    }
    return max_thread_index;
}

// The library may be part of a plug-in that is unloaded while threads go on which have used it: the end of such a
// thread must not lead into code that is gone. The indices of these threads are gone with it.
[[gnu::destructor(101)]] void forget_exit_key() noexcept {
    if (!is_in_program(reinterpret_cast<std::uintptr_t>(&index_bits)) && exit_key_valid.exchange(false)) {
        pthread_key_delete(exit_key);
    }
}

}  // namespace

namespace detail {

thread_local thread_numbers current_thread{};
constinit std::atomic<void (*)() noexcept> on_index_released{nullptr};

void call_on_new_thread(void (*f)() noexcept) noexcept {
    facts->on_new_thread.store(f, std::memory_order_release);
}

thread_numbers assign_thread() noexcept {
    pthread_once(&exit_key_once, [] { exit_key_valid = pthread_key_create(&exit_key, release_index) == 0; });
    if (ending) {
        current_thread.index = max_thread_index;
        return current_thread;
    }
    thread_numbers t;
    t.index = take_index();
    t.number = new_number();
    current_thread = t;
    if (exit_key_valid) {
        // Without the key, or if this fails, the index is merely not used again.
        pthread_setspecific(exit_key, reinterpret_cast<void*>(static_cast<std::uintptr_t>(t.index)));
    }
    if (const auto tell = facts->on_new_thread.load(std::memory_order_acquire); tell != nullptr) {
        tell();
    }
    return t;
}

}  // namespace detail

bool is_ending() noexcept {
    return ending;
}

std::uint32_t numbered_threads() noexcept {
    if (counted_in.load(std::memory_order_relaxed) != ::getpid()) {
        return 0;  // the threads of the parent are counted, and gone
    }
    std::uint32_t n = 0;
    for (const std::atomic<std::uint64_t>& word : index_bits) {
        n += static_cast<std::uint32_t>(__builtin_popcountll(word.load(std::memory_order_relaxed)));
    }
    return n;
}

namespace {

// Of a spin_lock's state, besides the number of the thread that holds it.
constexpr std::uint32_t waited_for = std::uint32_t{1} << 31;
constexpr std::uint32_t for_fork = std::uint32_t{1} << 30;
constexpr std::uint32_t holder_bits = for_fork - 1;

}  // namespace

std::uint32_t spin_lock::self() noexcept {
    const std::uint32_t number = this_thread().number & holder_bits;
    return number != 0 ? number : holder_bits;
}

bool spin_lock::is_mine() const noexcept {
    return (state_.load(std::memory_order_relaxed) & holder_bits) == self();
}

bool spin_lock::try_lock() noexcept {
    std::uint32_t nobody = 0;
    return state_.compare_exchange_strong(nobody, self(), std::memory_order_acquire, std::memory_order_relaxed);
}

// A futex lock, after U. Drepper, "Futexes Are Tricky" (2011), with a short spin first.
void spin_lock::lock() noexcept {
    // To sleep and be woken takes longer than most holders need. Looks before it writes: the holder needs the line,
    // too.
    constexpr int most_looks = 1'000;
    const std::uint32_t me = self();
    std::uint32_t state = 0;
    for (int i = 0; i < most_looks; ++i) {
        state = state_.load(std::memory_order_relaxed);
        if (state == 0 && try_lock()) {
            return;
        }
        if ((state & holder_bits) == me) {
            if ((state & for_fork) != 0) {
                return;  // unlock() lets it be
            }
            end_in_own_lock();
        }
        relax();
    }
    const errno_keeper keep;
    for (;;) {
        state = 0;
        // Others may be waiting as well.
        if (state_.compare_exchange_strong(state, me | waited_for, std::memory_order_acquire,
                                           std::memory_order_relaxed)) {
            return;
        }
        if ((state & waited_for) != 0 ||
            state_.compare_exchange_strong(state, state | waited_for, std::memory_order_relaxed)) {
            ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&state_), FUTEX_WAIT_PRIVATE, state | waited_for,
                      nullptr, nullptr, 0);
        }
    }
}

lock_outcome spin_lock::lock_for(int longest_ms) noexcept {
    for (int waited = 0; !try_lock(); ++waited) {
        if (is_mine()) {
            return lock_outcome::mine_already;
        }
        if (waited >= longest_ms) {
            return lock_outcome::gave_up;
        }
        for (int i = 0; i < 200 && state_.load(std::memory_order_relaxed) != 0; ++i) {
            relax();
        }
        if (state_.load(std::memory_order_relaxed) != 0) {
            sleep_ms(1);
        }
    }
    return lock_outcome::locked;
}

void spin_lock::unlock() noexcept {
    if ((state_.load(std::memory_order_relaxed) & for_fork) == 0) {
        end_fork();
    }
}

void spin_lock::keep_for_fork() noexcept {
    state_.fetch_or(for_fork, std::memory_order_relaxed);
}

void spin_lock::end_fork() noexcept {
    if ((state_.exchange(0, std::memory_order_release) & waited_for) != 0) {
        const errno_keeper keep;
        ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&state_), FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
    }
}

void sleep_ms(int ms) noexcept {
    const timespec t{.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1'000'000L};
    const errno_keeper keep;
    ::syscall(SYS_nanosleep, &t, nullptr);  // no point at which a thread can be cancelled
}

std::int64_t process_number() noexcept {
    return ::getpid();
}

void abort_process() noexcept {
    std::abort();
}

}  // namespace pmr_debug::os
