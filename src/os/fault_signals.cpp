#include "os/fault_signals.hpp"

#include "os/guarded.hpp"
#include "os/named_page.hpp"
#include "os/safe_copy.hpp"
#include "os/spare_stack.hpp"
#include "os/stack_bounds.hpp"
#include "os/start_code.hpp"
#include "os/thread.hpp"
#include "os/virtual_memory.hpp"

#include <linux/futex.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <ctime>
#include <string_view>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif

namespace pmr_debug::os {

namespace {

constexpr int fault_signals[] = {SIGSEGV, SIGBUS, SIGABRT};
constexpr std::size_t signal_count = sizeof fault_signals / sizeof fault_signals[0];

/// The handlers of before run on it as well. Ours needs little: it goes on elsewhere.
constexpr std::size_t stack_bytes = std::size_t{64} << 10;
/// Of a signal stack: what on_signal and its like need below the kernel's frame.
constexpr std::size_t handler_bytes = 1536;
/// A signal stack that has room for a report, in case there is no other.
constexpr std::size_t roomy_bytes = std::size_t{64} << 10;

// Waiting for the thread that faulted first.
constexpr int longest_wait_ms = 15'000;
constexpr int head_start_ms = 1'000;

/// So often a handler of before may return with the fault unresolved before that is told of: another thread may have
/// the answer.
constexpr unsigned most_refusals = 8;

enum class phase : std::uint32_t { off, waiting, telling };
struct fault_facts {
    std::atomic<phase> state{phase::off};
    fault_listener listens{};
};
constinit guarded<fault_facts> facts;
const guard_pages facts_guards(facts);
constexpr auto& state = facts->state;
constexpr auto& listens = facts->listens;

bool is_handler(const struct sigaction& a) noexcept {
    return (a.sa_flags & SA_SIGINFO) != 0 || (a.sa_handler != SIG_DFL && a.sa_handler != SIG_IGN);
}

std::uintptr_t code_of(const struct sigaction& a) noexcept {
    return (a.sa_flags & SA_SIGINFO) != 0 ? reinterpret_cast<std::uintptr_t>(a.sa_sigaction)
                                          : reinterpret_cast<std::uintptr_t>(a.sa_handler);
}

/// Returns: the word of code that \p code lies in; 0 if it cannot be read.
std::uint64_t word_at(std::uintptr_t code) noexcept {
    code &= ~(sizeof(std::uint64_t) - 1);
    std::uint64_t word = 0;
    return can_read(code) && safe_copy(&word, reinterpret_cast<const void*>(code), sizeof word) ? word : 0;
}

/// What was in place before this handler. Other threads may be in one that reads it when it changes: of two copies one
/// is in use.
class former_action {
public:
    [[nodiscard]] const struct sigaction& get() const noexcept { return now().action; }
    void set(const struct sigaction& a) noexcept {
        const unsigned other = 1 - at_.load(std::memory_order_relaxed);
        two_[other] = {a, is_handler(a) ? word_at(code_of(a)) : 0};
        at_.store(other, std::memory_order_release);
    }
    /// False: a handler whose code was unloaded since. Something else may be mapped there, but hardly the same code.
    [[nodiscard]] bool is_there() const noexcept {
        const known& k = now();
        if (!is_handler(k.action)) {
            return true;
        }
        const std::uint64_t word = word_at(code_of(k.action));
        if (word != 0 && word == k.word) {
            return true;  // so much is cheap, as each fault that the program resolves needs it
        }
        const mapping m = find_mapping(code_of(k.action));
        return m.high != 0 ? m.executable : word != 0;
    }

private:
    struct known {
        struct sigaction action {};
        std::uint64_t word = 0;  // of its code
    };
    [[nodiscard]] const known& now() const noexcept { return two_[at_.load(std::memory_order_acquire)]; }

    known two_[2]{};
    std::atomic<unsigned> at_{0};
};
constinit former_action before[signal_count];

/// The kernel's set of signals, a bit each.
using signal_set = std::uint64_t;

constexpr signal_set set_of(int signal) noexcept {
    return signal_set{1} << (signal - 1);
}

/// Where a thread faulted, to know the same fault again.
struct place {
    std::uintptr_t instruction = 0;
    std::uintptr_t stack_pointer = 0;
    std::uintptr_t address = 0;
    friend bool operator==(const place&, const place&) = default;
};

/// One call of the handler.
struct occasion {
    int signal;
    int error;  // errno of before
    siginfo_t* info;
    void* context;
    signal_set mask = 0;  // in place when it came, and again when it ends
    place here{};
    bool cramped = false;  // no stack to tell anything on
    bool in_front = true;  // no later handler passed it on
    bool told = false;
    bool may_ask = true;  // false: the handler of before has passed it on to us itself
    bool pinned = false;
    bool ask = false;  // the handler of before is to be called
};

/// A handler of before that was called and has not returned yet, maybe never will.
struct question {
    const void* context = nullptr;
    std::uintptr_t frame = 0;
};

// initial-exec: no allocation at first use, which may be in the handler.
#define PMR_DEBUG_EARLY_TLS __attribute__((tls_model("initial-exec")))
constinit thread_local bool telling PMR_DEBUG_EARLY_TLS = false;
constinit thread_local sigjmp_buf* way_back PMR_DEBUG_EARLY_TLS = nullptr;
constinit thread_local void* own_stack PMR_DEBUG_EARLY_TLS = nullptr;
constinit thread_local place told_at PMR_DEBUG_EARLY_TLS{};
constinit thread_local place refused_at PMR_DEBUG_EARLY_TLS{};
constinit thread_local unsigned refusals PMR_DEBUG_EARLY_TLS = 0;
constinit thread_local question asking PMR_DEBUG_EARLY_TLS{};
#undef PMR_DEBUG_EARLY_TLS

// A pthread key instead of a thread_local with a destructor: registering the latter allocates from the heap.
pthread_key_t stack_key{};
pthread_once_t stack_key_once = PTHREAD_ONCE_INIT;
constinit std::atomic<bool> stack_key_valid{false};

void on_signal(int signal, siginfo_t* info, void* context);

std::size_t index_of(int signal) noexcept {
    std::size_t i = 0;
    while (fault_signals[i] != signal) {
        ++i;
    }
    return i;
}

// The handler runs on a signal stack of perhaps 2 KiB. What it calls there, it calls through `syscall`: a function of
// the C library that was never called before is looked up by the loader, on this stack, and that takes kilobytes.
void change_mask(int how, const signal_set* now, signal_set* former) noexcept {
    ::syscall(SYS_rt_sigprocmask, how, now, former, sizeof(signal_set));
}

bool is_ours(const struct sigaction& a) noexcept {
    return (a.sa_flags & SA_SIGINFO) != 0 && a.sa_sigaction == on_signal;
}

struct sigaction our_action() noexcept {
    struct sigaction mine {};
    mine.sa_sigaction = on_signal;
    // SA_NODEFER: a fault in the handler comes back here instead of ending the process.
    mine.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&mine.sa_mask);
    return mine;
}

/// Returns: the action of before. If that is a handler whose code was unloaded since, the default action takes its
/// place.
const struct sigaction& former_of(int signal) noexcept {
    former_action& former = before[index_of(signal)];
    if (!former.is_there()) {
        former.set({});
    }
    return former.get();
}

// ---- other copies of this library -----------------------------------------------------------------------------------
//
// A plug-in with a copy of its own may have the handler of before, or the one in front, and meet the same fault. Copies
// may be of different versions: whatever is changed below needs a new name for the page.

constexpr std::string_view page_name = "pmr_debug_faults_1";

/// The handler \p code of a copy is gone. Whoever has it as handler of before takes \p former in its place.
using take_over_function = void (*)(int signal, std::uintptr_t code, const struct sigaction* former);

struct copy {
    std::atomic<take_over_function> take_over;
    std::atomic<std::uint32_t> calls;  ///< under way
};

/// What a thread was told of last, by any copy.
struct told_place {
    std::atomic<std::uint64_t> thread;  ///< 0: nobody's
    std::atomic<std::uintptr_t> instruction;
    std::atomic<std::uintptr_t> stack_pointer;
    std::atomic<std::uintptr_t> address;
};

/// What the page holds. Zeroes are an empty one.
struct shared_page {
    copy copies[64];
    told_place told[32];
    std::atomic<std::uint32_t> told_count;  ///< threads that have, or had, one
};
static_assert(sizeof(shared_page) <= 4096);
constinit std::atomic<shared_page*> everybody{nullptr};
constinit copy* this_copy = nullptr;

void take_over(int signal, std::uintptr_t code, const struct sigaction* former) {
    former_action& mine = before[index_of(signal)];
    if (is_handler(mine.get()) && code_of(mine.get()) == code) {
        const struct sigaction none {};
        mine.set(is_ours(*former) ? none : *former);
    }
}

void join_copies() noexcept {
    if (this_copy != nullptr) {
        return;
    }
    auto* const page = static_cast<shared_page*>(named_page(page_name));
    everybody.store(page, std::memory_order_release);
    for (std::size_t i = 0; page != nullptr && i < sizeof page->copies / sizeof page->copies[0]; ++i) {
        take_over_function nobody = nullptr;
        if (page->copies[i].take_over.compare_exchange_strong(nobody, take_over, std::memory_order_acq_rel)) {
            this_copy = &page->copies[i];
            return;
        }
    }
}

/// Effects: no other copy calls into this one any more.
void leave_copies() noexcept {
    if (this_copy != nullptr) {
        this_copy->take_over.store(nullptr, std::memory_order_seq_cst);
        for (int waited = 0; waited < 1'000 && this_copy->calls.load(std::memory_order_seq_cst) != 0; ++waited) {
            sleep_ms(1);
        }
        this_copy = nullptr;
    }
}

/// Effects: a copy whose handler calls ours next calls that of before ours instead, as our code may go away.
void hand_over(int signal) noexcept {
    shared_page* const page = everybody.load(std::memory_order_acquire);
    if (page == nullptr) {
        return;
    }
    for (copy& c : page->copies) {
        if (&c != this_copy && c.take_over.load(std::memory_order_relaxed) != nullptr) {
            c.calls.fetch_add(1, std::memory_order_seq_cst);
            if (const take_over_function f = c.take_over.load(std::memory_order_seq_cst); f != nullptr) {
                f(signal, code_of(our_action()), &former_of(signal));
            }
            c.calls.fetch_sub(1, std::memory_order_seq_cst);
        }
    }
}

/// The calling thread's entry, null if it has none.
told_place* told_here(shared_page& page) noexcept {
    const auto me = static_cast<std::uint64_t>(::syscall(SYS_gettid));
    told_place* const end = page.told + sizeof page.told / sizeof page.told[0];
    told_place* const mine = std::find_if(
        page.told, end, [me](const told_place& t) { return t.thread.load(std::memory_order_acquire) == me; });
    return mine != end ? mine : nullptr;
}

/// Effects: other copies learn that the calling thread's fault was told of.
void share_told(const place& p) noexcept {
    shared_page* const page = everybody.load(std::memory_order_acquire);
    if (page == nullptr) {
        return;
    }
    told_place* t = told_here(*page);
    if (t == nullptr) {  // the one told of longest ago is forgotten
        t = &page->told[page->told_count.fetch_add(1, std::memory_order_relaxed) % (sizeof page->told / sizeof *t)];
    }
    t->thread.store(0, std::memory_order_relaxed);
    t->instruction.store(p.instruction, std::memory_order_release);
    t->stack_pointer.store(p.stack_pointer, std::memory_order_release);
    t->address.store(p.address, std::memory_order_release);
    t->thread.store(static_cast<std::uint64_t>(::syscall(SYS_gettid)), std::memory_order_release);
}

/// True if the calling thread was told of this very fault last, whichever copy told it.
bool is_told(const place& p) noexcept {
    shared_page* const page = everybody.load(std::memory_order_acquire);
    const told_place* const t = page != nullptr ? told_here(*page) : nullptr;
    return t != nullptr && t->instruction.load(std::memory_order_relaxed) == p.instruction &&
           t->stack_pointer.load(std::memory_order_relaxed) == p.stack_pointer &&
           t->address.load(std::memory_order_relaxed) == p.address;
}

/// Effects: where the action in place is not ours, as somebody's handler was installed after ours, that stays.
void restore_actions() noexcept {
    for (const int signal : fault_signals) {
        struct sigaction now {};
        if (::sigaction(signal, nullptr, &now) == 0 && is_ours(now)) {
            ::sigaction(signal, &former_of(signal), nullptr);
        } else {
            hand_over(signal);
        }
    }
}

// ---- what the thread did -------------------------------------------------------------------------

fault describe(const occasion& o) noexcept {
    fault f;
    f.aborted = o.signal == SIGABRT;
    f.bus_error = o.signal == SIGBUS;
    f.has_address = !f.aborted && o.info->si_code != SI_KERNEL;
    f.unmapped = o.signal == SIGSEGV && o.info->si_code == SEGV_MAPERR;
    f.address = f.has_address ? reinterpret_cast<std::uintptr_t>(o.info->si_addr) : 0;
    const auto& machine = static_cast<const ucontext_t*>(o.context)->uc_mcontext;
#if defined(__x86_64__)
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
#elif defined(__aarch64__)
    f.where.instruction = machine.pc;
    f.where.stack_pointer = machine.sp;
    f.where.frame_pointer = machine.regs[29];
    for (int i = 0; i < 16; ++i) {
        f.where.registers[i] = machine.regs[i];
    }
    f.access = f.has_address && f.address == machine.pc ? fault_access::execute : fault_access::unknown;
#else
    static_cast<void>(machine);
#endif
    return f;
}

place place_of(const occasion& o) noexcept {
    const fault f = describe(o);
    return {f.where.instruction, f.where.stack_pointer, f.address};
}

// ---- the page that refused -----------------------------------------------------------------------

std::uintptr_t page_of(const occasion& o) noexcept {
    return reinterpret_cast<std::uintptr_t>(o.info->si_addr) & ~(static_cast<std::uintptr_t>(page_size()) - 1);
}

/// Effects: nothing else is mapped where the thread faulted, by this library or by another thread: if the instruction
/// is executed again, it faults again. Nothing if there is a mapping already.
void pin(occasion& o) noexcept {
    if (o.signal == SIGABRT || o.info->si_code <= 0 || o.info->si_code == SI_KERNEL) {
        return;
    }
    const std::uintptr_t page = page_of(o);
    const long got = ::syscall(SYS_mmap, page, page_size(), PROT_NONE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0L);
    o.pinned = got != -1 && static_cast<std::uintptr_t>(got) == page;
    if (got != -1 && !o.pinned) {  // a kernel that does not know the flag
        ::syscall(SYS_munmap, got, page_size());
    }
}

void unpin(occasion& o) noexcept {
    if (o.pinned) {
        ::syscall(SYS_munmap, page_of(o), page_size());
        o.pinned = false;
    }
}

/// Returns: true if the access would not fault now. Asks the kernel to look there, which changes nothing.
bool is_resolved(const occasion& o) noexcept {
    const fault f = describe(o);
    if (!f.has_address || f.access == fault_access::execute) {
        return false;
    }
    if (f.access == fault_access::write) {
        // Adds 0 to the word, and wakes nobody.
        std::uint32_t own = 0;
        constexpr std::uintptr_t word = alignof(std::uint32_t) - 1;
        constexpr unsigned add_nothing = FUTEX_OP(FUTEX_OP_ADD, 0, FUTEX_OP_CMP_EQ, 0);
        return ::syscall(SYS_futex, &own, FUTEX_WAKE_OP_PRIVATE, 0, 0, f.address & ~word, add_nothing) >= 0 ||
               errno != EFAULT;
    }
    constexpr std::uintptr_t word = sizeof(std::uintptr_t) - 1;
    return can_read(f.address & ~word);
}

// ---- telling -------------------------------------------------------------------------------------

/// Effects: waits for the thread that has the word, which is to come to its end first. Returns: false if that takes
/// too long.
bool wait_for_the_teller() noexcept {
    int waited = 0;
    while (waited < longest_wait_ms && state.load(std::memory_order_acquire) == phase::telling) {
        sleep_ms(10);
        waited += 10;
    }
    sleep_ms(head_start_ms);
    return waited < longest_wait_ms;
}

bool begin_telling() noexcept {
    for (;;) {
        phase expected = phase::waiting;
        if (state.compare_exchange_strong(expected, phase::telling, std::memory_order_acq_rel)) {
            return true;
        }
        if (expected == phase::off || !wait_for_the_teller()) {
            return false;
        }
    }
}

/// Effects: the state after telling, unless the handler was removed meanwhile.
void end_telling() noexcept {
    phase expected = phase::telling;
    state.compare_exchange_strong(expected, phase::waiting, std::memory_order_acq_rel);
}

struct told_fault {
    fault what;
    bool answer = false;
};

void call_tell(void* context) {
    told_fault& t = *static_cast<told_fault*>(context);
    t.answer = listens.tell(t.what, listens.context);
}

void call_knows(void* context) {
    told_fault& t = *static_cast<told_fault*>(context);
    t.answer = listens.knows(t.what, listens.context);
}

bool knows(const occasion& o) noexcept {
    told_fault t{describe(o)};
    survives(call_knows, &t);
    return t.answer;
}

void tell(occasion& o) noexcept {
    if (o.told || o.cramped || telling || is_told(o.here) || !begin_telling()) {
        return;
    }
    told_fault t{describe(o)};
    telling = true;
    survives(call_tell, &t);
    telling = false;
    o.told = true;
    share_told(o.here);
    end_telling();
}

// ---- what becomes of the signal ------------------------------------------------------------------

/// Effects: the process ends by this signal when the handler returns. The signal waits, blocked, with all that came
/// with it; the kernel lets it through when it has put the thread back to the instruction, before that is executed. So
/// a core dump shows the fault as it was, and it makes no difference what has become of the page.
void end_process(occasion& o) noexcept {
    struct sigaction none {};
    none.sa_handler = SIG_DFL;
    ::sigaction(o.signal, &none, nullptr);
    const signal_set mine = set_of(o.signal);
    change_mask(SIG_BLOCK, &mine, nullptr);
    o.mask |= mine;
    // Refused, perhaps, in a sandbox: then the instruction is executed again, on the pinned page.
    ::syscall(SYS_rt_tgsigqueueinfo, ::getpid(), ::syscall(SYS_gettid), o.signal, o.info);
}

/// Effects: tells of an abort if there is something to tell, and lets it go on.
void consider_abort(occasion& o) noexcept {
    // abort sends the signal to its own thread. What kill sends may come at any point of the code, within a lock, say.
    if (!telling && !o.cramped && o.info->si_code == SI_TKILL && o.info->si_pid == ::getpid()) {
        phase expected = phase::waiting;
        if (state.compare_exchange_strong(expected, phase::telling, std::memory_order_acq_rel)) {
            told_fault t{describe(o)};
            telling = true;
            survives(call_tell, &t);
            telling = false;
            end_telling();
        } else if (expected == phase::telling) {
            wait_for_the_teller();
        }
    }
}

/// Effects: a signal that is no fault goes to the action of before. Where a later handler passed it on to this one,
/// whoever is in front decides what happens now.
void pass_on(occasion& o) noexcept {
    const struct sigaction& former = former_of(o.signal);
    o.ask = o.may_ask && is_handler(former);
    if (!o.ask && o.in_front && former.sa_handler != SIG_IGN) {
        end_process(o);
    }
}

bool is_in_front(const occasion& o) noexcept {
    struct sigaction now {};
    return ::sigaction(o.signal, nullptr, &now) == 0 && is_ours(now);
}

/// True if the handler of before, asked about this very fault, has passed it on to us.
bool comes_round(const occasion& o, std::uintptr_t frame) noexcept {
    return asking.context == o.context && frame < asking.frame;
}

/// True if the thread sent this signal to itself while it handled a fault, as handlers do that put the action of before
/// back and raise the signal anew: it comes when they have returned, where the instruction faulted that was not
/// executed since. \p caused is what the kernel had said of the fault.
bool was_sent_for_a_fault(const occasion& o, siginfo_t& caused) noexcept {
#if defined(__x86_64__)
    if ((o.info->si_code != SI_TKILL && o.info->si_code != SI_USER) || o.info->si_pid != ::getpid()) {
        return false;
    }
    // The kernel keeps what it knows of a thread's last fault. Is it this one? Behind a system call, such as that which
    // sends a signal, there was none.
    const auto& machine = static_cast<const ucontext_t*>(o.context)->uc_mcontext;
    constexpr greg_t page_fault = 14;
    constexpr unsigned char system_call[] = {0x0F, 0x05};
    unsigned char ahead[sizeof system_call];
    const auto instruction = static_cast<std::uintptr_t>(machine.gregs[REG_RIP]);
    if (machine.gregs[REG_TRAPNO] != page_fault ||
        !safe_copy(ahead, reinterpret_cast<const void*>(instruction - sizeof ahead), sizeof ahead) ||
        std::memcmp(ahead, system_call, sizeof ahead) == 0) {
        return false;
    }
    caused = {};
    caused.si_signo = o.signal;
    caused.si_code = SEGV_ACCERR;
    caused.si_addr = reinterpret_cast<void*>(machine.gregs[REG_CR2]);
    return !is_resolved({.signal = o.signal, .error = 0, .info = &caused, .context = o.context});
#else
    static_cast<void>(o);
    static_cast<void>(caused);
    return false;
#endif
}

void consider(void* argument) {
    occasion& o = *static_cast<occasion*>(argument);
    const signal_set faults = set_of(SIGSEGV) | set_of(SIGBUS);
    change_mask(SIG_UNBLOCK, &faults, nullptr);
    o.in_front = is_in_front(o);
    if (o.signal == SIGABRT) {
        consider_abort(o);
        pass_on(o);
        return;
    }
    if (o.info->si_code <= 0) {  // sent, not caused
        siginfo_t caused;
        if (was_sent_for_a_fault(o, caused)) {
            occasion fault = o;
            fault.info = &caused;
            fault.here = place_of(fault);
            tell(fault);
        }
        pass_on(o);
        return;
    }
    o.here = place_of(o);
    const bool off = state.load(std::memory_order_acquire) == phase::off;
    const bool again = o.here == told_at || is_told(o.here);
    const bool former = o.may_ask && is_handler(former_of(o.signal));
    o.told = again || off;
    if (!former || (!o.told && knows(o))) {
        tell(o);
        told_at = o.here;
    }
    if (former) {
        unpin(o);
        o.ask = true;
    } else if (again || off || o.in_front) {
        end_process(o);
    }
}

/// Effects: takes the signal that the handler of before has sent anew, having put the default action in place. It
/// waits, and let through here, it would end the process within this handler. Returns: false if there is none.
bool take_sent(const occasion& o, siginfo_t& sent) noexcept {
    struct sigaction now {};
    const signal_set mine = set_of(o.signal);
    const timespec at_once{};
    return o.signal != SIGABRT && ::sigaction(o.signal, nullptr, &now) == 0 && !is_handler(now) &&
           ::syscall(SYS_rt_sigtimedwait, &mine, &sent, &at_once, sizeof mine) == o.signal;
}

/// The handler of before has returned.
void look_again(void* argument) {
    occasion& o = *static_cast<occasion*>(argument);
    siginfo_t sent;
    const bool was_sent = take_sent(o, sent);
    const signal_set faults = set_of(SIGSEGV) | set_of(SIGBUS);
    change_mask(SIG_UNBLOCK, &faults, nullptr);
    const place now_at = place_of(o);
    if (o.signal == SIGABRT || o.info->si_code <= 0 || now_at.instruction != o.here.instruction ||
        now_at.stack_pointer != o.here.stack_pointer) {
        if (was_sent) {
            o.info = &sent;
            end_process(o);
        }
        return;
    }
    struct sigaction now {};
    if (::sigaction(o.signal, nullptr, &now) == 0 && !is_ours(now)) {
        if (!is_handler(now)) {
            tell(o);
            end_process(o);
            return;
        }
        if (o.in_front) {
            // It has put itself back, as handlers of old do, or the one that it found.
            before[index_of(o.signal)].set(now);
            const struct sigaction mine = our_action();
            ::sigaction(o.signal, &mine, nullptr);
        }
    }
    if (is_resolved(o)) {
        refusals = 0;
        return;
    }
    refusals = refused_at == o.here ? refusals + 1 : 1;
    refused_at = o.here;
    if (refusals >= most_refusals) {
        tell(o);
        told_at = o.here;
    }
}

/// Effects: calls the handler of before as the kernel would.
void ask_former(const occasion& o) noexcept {
    struct sigaction former = before[index_of(o.signal)].get();
    const auto flags = static_cast<unsigned>(former.sa_flags);  // SA_RESETHAND has the sign bit
    const auto with_info = former.sa_sigaction;
    const auto without = former.sa_handler;
    signal_set blocked = 0;
    std::memcpy(&blocked, &former.sa_mask, sizeof blocked);
    blocked |= (flags & SA_NODEFER) == 0 ? set_of(o.signal) : 0;
    if ((flags & SA_RESETHAND) != 0) {
        former.sa_flags = 0;
        former.sa_handler = SIG_DFL;
        before[index_of(o.signal)].set(former);
    }
    change_mask(SIG_BLOCK, &blocked, nullptr);
    const question outer = asking;
    asking = {o.context, reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0))};
    errno = o.error;
    if ((flags & SA_SIGINFO) != 0) {
        with_info(o.signal, o.info, o.context);
    } else {
        without(o.signal);
    }
    asking = outer;
}

/// True if the thread is on a signal stack that is too small for a report.
bool is_cramped() noexcept {
    stack_t now{};
    return ::syscall(SYS_sigaltstack, nullptr, &now) == 0 && (now.ss_flags & SS_ONSTACK) != 0 &&
           now.ss_size < roomy_bytes;
}

void run(void (*step)(void*), occasion& o) noexcept {
    if (!on_spare_stack(step, &o)) {
        o.cramped = is_cramped();
        step(&o);
    }
}

void on_signal(int signal, siginfo_t* info, void* context) {
    if (way_back != nullptr && signal != SIGABRT && info->si_code > 0) {
        siglongjmp(*way_back, 1);
    }
    occasion o{.signal = signal, .error = errno, .info = info, .context = context};
    change_mask(SIG_BLOCK, nullptr, &o.mask);
    o.may_ask = !comes_round(o, reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0)));
    pin(o);
    run(consider, o);
    if (o.ask) {
        ask_former(o);
        o.error = errno;
        run(look_again, o);
    }
    change_mask(SIG_SETMASK, &o.mask, nullptr);
    errno = o.error;
}

void drop_stack(void* stack) noexcept {
    stack_t none{};
    none.ss_flags = SS_DISABLE;
    if (::sigaltstack(&none, nullptr) == 0) {
        own_stack = nullptr;
        unmap(stack, stack_bytes);
    }
}

/// The kernel's frame takes 1 to 3 KiB and more, as the processor has registers. 0: the kernel does not say.
std::size_t smallest_stack() noexcept {
    const std::size_t said = ::getauxval(AT_MINSIGSTKSZ);
    return (said != 0 ? said : std::size_t{2048}) + handler_bytes;
}

}  // namespace

bool prepare_fault_stack() noexcept {
    if (own_stack != nullptr) {
        return true;
    }
    stack_t now{};
    if (::sigaltstack(nullptr, &now) == 0 && (now.ss_flags & SS_DISABLE) == 0 && now.ss_size >= smallest_stack()) {
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

bool install_fault_signals(const fault_listener& listener) noexcept {
    phase expected = phase::off;
    if (!state.compare_exchange_strong(expected, phase::telling, std::memory_order_acq_rel)) {
        return false;
    }
    listens = listener;
    join_copies();
    prepare_fault_stack();
    prepare_spare_stack();
    detail::call_on_new_thread([]() noexcept { prepare_fault_stack(); });
    signal_set any = 0;
    change_mask(SIG_BLOCK, nullptr, &any);  // the loader has found `syscall` now
    state.store(phase::waiting, std::memory_order_release);
    const struct sigaction mine = our_action();
    for (std::size_t i = 0; i < signal_count; ++i) {
        // What was there must be known before a fault can happen. Ours, if a later handler has put it back: what was
        // there before that is known then.
        struct sigaction now {};
        const bool known = ::sigaction(fault_signals[i], nullptr, &now) == 0;
        if (known && !is_ours(now)) {
            before[i].set(now);
        }
        if (!known || ::sigaction(fault_signals[i], &mine, nullptr) != 0) {
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
    detail::call_on_new_thread(nullptr);
    state.store(phase::off, std::memory_order_release);
}

bool telling_fault() noexcept {
    return telling;
}

bool survives(void (*step)(void* context), void* context) noexcept {
    sigjmp_buf here;
    sigjmp_buf* volatile const outer = way_back;
    // With the signals' mask: a later handler may have blocked the signal before it passed it on to ours.
    if (sigsetjmp(here, 1) != 0) {
        way_back = outer;
        return false;
    }
    way_back = &here;
    step(context);
    way_back = outer;
    return true;
}

namespace {

// As for the key in thread.cpp: a plug-in that has the library inside leaves nothing behind that leads into it. The
// stacks of other threads that go on stay, as one of them may be in use.
[[gnu::destructor(101)]] void forget_this_module() noexcept {
    if (is_in_program(reinterpret_cast<std::uintptr_t>(&before))) {
        return;
    }
    if (faults_are_told()) {
        remove_fault_signals();
    }
    leave_copies();
    if (stack_key_valid.exchange(false)) {
        pthread_key_delete(stack_key);
    }
    stack_t now{};
    if (own_stack != nullptr && ::sigaltstack(nullptr, &now) == 0 && (now.ss_flags & SS_ONSTACK) == 0 &&
        now.ss_sp == static_cast<unsigned char*>(own_stack) + page_size()) {
        drop_stack(own_stack);
    }
}

}  // namespace

}  // namespace pmr_debug::os
