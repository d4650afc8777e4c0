#include "os/fault_signals.hpp"

#include "os/thread.hpp"
#include "os/virtual_memory.hpp"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>

namespace pmr_debug::os {

namespace {

constexpr int fault_signals[] = {SIGSEGV, SIGBUS, SIGABRT};
constexpr std::size_t signal_count = sizeof fault_signals / sizeof fault_signals[0];

/// Reading debug information and demangling need some.
constexpr std::size_t stack_bytes = std::size_t{256} << 10;

// Waiting for the thread that faulted first.
constexpr int longest_wait_ms = 15'000;
constexpr int head_start_ms = 1'000;

enum class phase : std::uint32_t { off, waiting, telling, told };
constinit std::atomic<phase> state{phase::off};
constinit fault_function told{};
constinit void* told_context = nullptr;
struct sigaction before[signal_count];

// initial-exec: no allocation at first use, which may be in the handler.
constinit thread_local bool telling __attribute__((tls_model("initial-exec"))) = false;
constinit thread_local sigjmp_buf* way_back __attribute__((tls_model("initial-exec"))) = nullptr;
constinit thread_local void* own_stack __attribute__((tls_model("initial-exec"))) = nullptr;

// A pthread key instead of a thread_local with a destructor: registering the latter allocates from the heap.
pthread_key_t stack_key{};
pthread_once_t stack_key_once = PTHREAD_ONCE_INIT;
bool stack_key_valid = false;

void on_signal(int signal, siginfo_t* info, void* context);

/// Returns: false, nothing changed, if the action in place is not ours: somebody's handler was installed after ours.
bool restore_action(int signal) noexcept {
    std::size_t i = 0;
    while (fault_signals[i] != signal) {
        ++i;
    }
    struct sigaction now {};
    const bool ours =
        ::sigaction(signal, nullptr, &now) == 0 && (now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_signal;
    return ours && ::sigaction(signal, &before[i], nullptr) == 0;
}

void restore_actions() noexcept {
    for (const int signal : fault_signals) {
        restore_action(signal);
    }
}

/// Effects: the action of before gets the signal. Not where a later handler passed it on to this one: sent again, it
/// would only come round for ever, and whoever is in front decides what happens now.
void hand_on(int signal) noexcept {
    if (restore_action(signal)) {
        ::syscall(SYS_tgkill, ::getpid(), ::syscall(SYS_gettid), signal);
    }
}

/// Effects: the first thread has the word. It is to meet its fault again before this one meets its own.
void wait_for_the_teller() noexcept {
    for (int waited = 0; waited < longest_wait_ms && state.load(std::memory_order_acquire) == phase::telling;
         waited += 10) {
        sleep_ms(10);
    }
    sleep_ms(head_start_ms);
}

/// Effects: the state after telling, unless the handler was removed meanwhile.
void end_telling(phase now) noexcept {
    phase expected = phase::telling;
    state.compare_exchange_strong(expected, now, std::memory_order_acq_rel);
}

fault describe(int signal, const siginfo_t& info, const void* context) noexcept {
    fault f;
    f.aborted = signal == SIGABRT;
    f.bus_error = signal == SIGBUS;
    f.has_address = !f.aborted && info.si_code != SI_KERNEL;
    f.address = f.has_address ? reinterpret_cast<std::uintptr_t>(info.si_addr) : 0;
#if defined(__x86_64__)
    const auto& machine = static_cast<const ucontext_t*>(context)->uc_mcontext;
    const auto at = [&machine](int i) { return static_cast<std::uintptr_t>(machine.gregs[i]); };
    f.where.instruction = at(REG_RIP);
    f.where.stack_pointer = at(REG_RSP);
    f.where.frame_pointer = at(REG_RBP);
    for (int i = REG_R8; i <= REG_RSP; ++i) {
        f.where.registers[i] = at(i);
    }
    // Bits of the page fault's error code; other exceptions have none.
    constexpr std::uintptr_t page_fault = 14;
    constexpr std::uintptr_t write_bit = 2;
    constexpr std::uintptr_t fetch_bit = 16;
    if (at(REG_TRAPNO) == page_fault) {
        const std::uintptr_t code = at(REG_ERR);
        f.access = (code & fetch_bit) != 0   ? fault_access::execute
                   : (code & write_bit) != 0 ? fault_access::write
                                             : fault_access::read;
        // Processors that cannot refuse to execute do not set the bit.
        f.access = f.address == f.where.instruction ? fault_access::execute : f.access;
    }
#else
    static_cast<void>(context);
#endif
    return f;
}

/// Effects: tells of an abort if there is something to tell, and lets it go on.
void on_abort(const siginfo_t& info, const void* context) noexcept {
    // abort sends the signal to its own thread. What kill sends may come at any point of the code, within a lock, say.
    if (!telling && info.si_code == SI_TKILL && info.si_pid == ::getpid()) {
        phase expected = phase::waiting;
        if (state.compare_exchange_strong(expected, phase::telling, std::memory_order_acq_rel)) {
            telling = true;
            const bool was_told = told(describe(SIGABRT, info, context), told_context);
            telling = false;
            end_telling(was_told ? phase::told : phase::waiting);
            if (was_told) {  // as after a fault
                restore_action(SIGSEGV);
                restore_action(SIGBUS);
            }
        } else if (expected == phase::telling) {
            wait_for_the_teller();
        }
    }
    hand_on(SIGABRT);
}

void on_signal(int signal, siginfo_t* info, void* context) {
    const int error = errno;
    if (signal == SIGABRT) {
        on_abort(*info, context);
        errno = error;
        return;
    }
    if (way_back != nullptr) {
        siglongjmp(*way_back, 1);
    }
    if (info->si_code <= 0) {  // sent, not caused
        hand_on(signal);
        errno = error;
        return;
    }
    phase expected = phase::waiting;
    if (telling) {  // a fault while telling, where nobody was prepared for it
        restore_actions();
    } else if (state.compare_exchange_strong(expected, phase::telling, std::memory_order_acq_rel)) {
        telling = true;
        static_cast<void>(told(describe(signal, *info, context), told_context));
        telling = false;
        restore_actions();
        end_telling(phase::told);
    } else {
        wait_for_the_teller();
        restore_actions();
    }
    errno = error;
}

void drop_stack(void* stack) noexcept {
    stack_t none{};
    none.ss_flags = SS_DISABLE;
    if (::sigaltstack(&none, nullptr) == 0) {
        own_stack = nullptr;
        unmap(stack, stack_bytes);
    }
}

}  // namespace

bool prepare_fault_stack() noexcept {
    if (own_stack != nullptr) {
        return true;
    }
    stack_t now{};
    if (::sigaltstack(nullptr, &now) == 0 && (now.ss_flags & SS_DISABLE) == 0) {
        return true;  // somebody else's will do
    }
    pthread_once(&stack_key_once, [] { stack_key_valid = pthread_key_create(&stack_key, drop_stack) == 0; });
    void* const range = stack_key_valid ? reserve(stack_bytes, page_size()) : nullptr;
    if (range == nullptr) {
        return false;
    }
    // Its lowest page stays without permissions: the stack's end.
    auto* const low = static_cast<unsigned char*>(range) + page_size();
    stack_t mine{};
    mine.ss_sp = low;
    mine.ss_size = stack_bytes - page_size();
    if (!commit(low, mine.ss_size) || pthread_setspecific(stack_key, range) != 0) {
        unmap(range, stack_bytes);
        return false;
    }
    if (::sigaltstack(&mine, nullptr) != 0) {
        pthread_setspecific(stack_key, nullptr);
        unmap(range, stack_bytes);
        return false;
    }
    own_stack = range;
    return true;
}

bool install_fault_signals(fault_function tell, void* context) noexcept {
    phase expected = phase::off;
    if (!state.compare_exchange_strong(expected, phase::told, std::memory_order_acq_rel)) {
        return false;
    }
    told = tell;
    told_context = context;
    prepare_fault_stack();
    detail::on_new_thread.store([]() noexcept { prepare_fault_stack(); }, std::memory_order_release);
    state.store(phase::waiting, std::memory_order_release);
    struct sigaction mine {};
    mine.sa_sigaction = on_signal;
    // SA_NODEFER: a fault in the handler comes back here instead of ending the process.
    mine.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&mine.sa_mask);
    for (std::size_t i = 0; i < signal_count; ++i) {
        // What was there must be known before a fault can happen.
        if (::sigaction(fault_signals[i], nullptr, &before[i]) != 0 ||
            ::sigaction(fault_signals[i], &mine, nullptr) != 0) {
            remove_fault_signals();
            return false;
        }
    }
    return true;
}

bool faults_are_told() noexcept {
    return state.load(std::memory_order_relaxed) != phase::off;
}

void remove_fault_signals() noexcept {
    restore_actions();
    detail::on_new_thread.store(nullptr, std::memory_order_release);
    state.store(phase::off, std::memory_order_release);
}

bool telling_fault() noexcept {
    return telling;
}

bool survives(void (*step)(void* context), void* context) noexcept {
    sigjmp_buf here;
    sigjmp_buf* volatile const outer = way_back;
    if (sigsetjmp(here, 0) != 0) {
        way_back = outer;
        return false;
    }
    way_back = &here;
    step(context);
    way_back = outer;
    return true;
}

}  // namespace pmr_debug::os
