// Random call chains, each walked by rules and by the unwinder, which must agree frame for frame; and captured, from
// what is remembered or not, which must say the same.
//
//   walks [captures [seed]]
//
// Built several times, as code is built: with and without frame pointers, from -O0 to -O3. What the rules leave to the
// unwinder is counted, and must be rare.

#include "stack/capture.hpp"
#include "stack/rules.hpp"
#include "stack/unwinder.hpp"

#include <pmr_debug/stack_trace.hpp>

#include <alloca.h>
#include <link.h>
#include <pthread.h>
#include <search.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <any>
#include <coroutine>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory_resource>
#include <mutex>
#include <string>
#include <thread>
#include <variant>

namespace {

namespace stack = pmr_debug::stack;

#define NOINLINE [[gnu::noinline]]

struct counts {
    std::uint64_t captures = 0;
    std::uint64_t by_unwinder = 0;      ///< …and no signal frame among them
    std::uint64_t through_signals = 0;  ///< a frame that a signal interrupted is the unwinder's
    std::uint64_t differences = 0;
};
counts total;
std::uint64_t wanted = 200'000;

thread_local std::uint64_t state = 1;
thread_local unsigned in_signal = 0;

std::uint64_t draw() {
    state ^= state << 13U;
    state ^= state >> 7U;
    state ^= state << 17U;
    return state * 0x2545'F491'4F6C'DD1DU >> 11U;
}

void tell(const char* what, const std::uintptr_t* found, unsigned found_depth, const stack::walk& truth) {
    if (++total.differences > 5) {
        return;
    }
    std::fprintf(stderr, "difference: %s\n", what);
    for (unsigned i = 0; i < std::max(found_depth, truth.depth); ++i) {
        std::fprintf(stderr, "  %2u %16zx %16zx\n", i, i < found_depth ? found[i] : 0,
                     i < truth.depth ? truth.frames[i] : 0);
    }
}

/// Where every chain ends. \p frame is its caller's.
NOINLINE void check(std::uintptr_t frame) {
    constexpr unsigned enough = 40;
    stack::rule_walk found;
    stack::walk truth;
    const bool by_rules = stack::walk_by_rules(frame, enough, found);
    stack::unwind(frame, stack::max_walk, truth);
    ++total.captures;
    if (!by_rules) {
        (in_signal != 0 ? total.through_signals : total.by_unwinder) += 1;
    } else {
        const bool same_end = found.end == stack::walk_end::depth
                                  ? truth.depth >= found.depth
                                  : truth.depth == found.depth && found.end == truth.end;
        if (!same_end || !std::equal(found.frames, found.frames + found.depth, truth.frames)) {
            tell("a walk by rules", found.frames, found.depth, truth);
        }
    }
    static constexpr unsigned depths[] = {1, 4, 8, 8, 8, 16, 24, 64};
    const unsigned most = depths[draw() % 8];
    const pmr_debug::trace_view v = pmr_debug::view(stack::capture(most, frame));
    const auto depth = static_cast<unsigned>(v.frames.size());
    // Library code is for nothing.
    const bool whole = v.flags.depth_reached ? depth >= most : depth <= truth.depth && truth.depth - depth <= 4;
    // In a static program the C library's start of a fiber is not known to be one.
    const bool no_data = truth.end == stack::walk_end::no_rules && depth == truth.depth;
    if (!whole || !std::equal(v.frames.begin(), v.frames.end(), truth.frames) || v.flags.cut_short != no_data) {
        tell("a trace", v.frames.data(), depth, truth);
    }
}

NOINLINE void leaf() {
    check(reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0)));
    asm volatile("");
}
/// With another distance to the first frame.
NOINLINE void other_leaf() {
    char some[200];
    some[draw() % 200] = 1;
    asm volatile("" ::"r"(some) : "memory");
    check(reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0)));
    asm volatile("");
}

void step(int depth);

// ---- Ways to call ---------------------------------------------------------------------------------------------------

NOINLINE void plain(int depth) {
    step(depth);
    asm volatile("");
}
NOINLINE void twice(int depth) {
    step(depth);
    asm volatile("");
    step(depth);
    asm volatile("");
}
NOINLINE void large_frame(int depth) {
    char some[6000];
    some[draw() % 6000] = 1;
    asm volatile("" ::"r"(some) : "memory");
    step(depth);
    asm volatile("" ::"r"(some) : "memory");
}
NOINLINE void grows_its_frame(int depth) {
    const std::size_t n = draw() % 3000 + 1;
    auto* const some = static_cast<volatile char*>(alloca(n));
    some[n - 1] = 1;
    step(depth);
    some[0] = 2;
}
NOINLINE void realigns(int depth) {
    struct alignas(64) line {
        volatile char some[64];
    };
    line l;
    l.some[draw() % 64] = 1;
    asm volatile("" ::"r"(&l));
    step(depth);
    asm volatile("" ::"r"(&l));
}
NOINLINE void realigns_and_grows(int depth) {
    struct alignas(128) line {
        volatile char some[128];
    };
    line l;
    const std::size_t n = draw() % 500 + 1;
    auto* const some = static_cast<volatile char*>(alloca(n));
    some[n - 1] = 1;
    l.some[3] = 1;
    asm volatile("" ::"r"(&l));
    step(depth);
    asm volatile("" ::"r"(&l));
}
NOINLINE long many_arguments(int depth, long a, long b, long c, long d, long e, long f, long g, long h, long i) {
    step(depth);
    asm volatile("");
    return a + b + c + d + e + f + g + h + i;
}
NOINLINE void passes_on_the_stack(int depth) {
    const long sum = many_arguments(depth, 1, 2, 3, 4, 5, 6, 7, 8, static_cast<long>(draw()));
    asm volatile("" ::"r"(sum));
}
struct shape {
    virtual ~shape() = default;
    virtual void go(int depth) = 0;
};
struct round : shape {
    NOINLINE void go(int depth) override {
        step(depth);
        asm volatile("");
    }
};
struct square : shape {
    NOINLINE void go(int depth) override {
        volatile int some[20];
        some[3] = depth;
        step(some[3]);
    }
};
NOINLINE void by_virtual(int depth) {
    static round a;
    static square b;
    shape* const s = draw() % 2 == 0 ? static_cast<shape*>(&a) : &b;
    s->go(depth);
    asm volatile("");
}
NOINLINE void by_function_object(int depth) {
    const std::function<void(int)> f = [](int d) {
        step(d);
        asm volatile("");
    };
    f(depth);
}
NOINLINE void by_variant(int depth) {
    std::variant<int, std::string> v = depth;
    if (draw() % 2 == 0) {
        v = std::string("text");
    }
    std::visit(
        [depth](const auto&) {
            step(depth);
            asm volatile("");
        },
        v);
}
thread_local int pending = 0;
NOINLINE int compares(const void*, const void*) {
    if (pending >= 0) {
        const int depth = pending;
        pending = -1;
        step(depth);
    }
    asm volatile("");
    return 0;
}
NOINLINE void by_qsort(int depth) {
    int values[5] = {5, 4, 3, 2, 1};
    pending = depth;
    std::qsort(values, 5, sizeof values[0], compares);
    asm volatile("" ::"r"(values));
}
NOINLINE void by_bsearch(int depth) {
    int values[5] = {1, 2, 3, 4, 5};
    pending = depth;
    const void* const p = std::bsearch(&values[2], values, 5, sizeof values[0], compares);
    asm volatile("" ::"r"(p));
}
NOINLINE void by_tree(int depth) {
    void* root = nullptr;
    int values[2] = {1, 2};
    pending = -1;
    tsearch(&values[0], &root, compares);
    pending = depth;
    tsearch(&values[1], &root, compares);
    tdestroy(root, [](void*) {});
}
NOINLINE void by_sort(int depth) {
    int values[20];
    for (int& v : values) {
        v = static_cast<int>(draw() % 100);
    }
    bool done = false;
    std::sort(values, values + 20, [&](int a, int b) {
        if (!done) {
            done = true;
            step(depth);
        }
        return a < b;
    });
    asm volatile("" ::"r"(values));
}
NOINLINE void by_call_once(int depth) {
    std::once_flag once;
    std::call_once(once, [depth] {
        step(depth);
        asm volatile("");
    });
}
int on_file(dl_phdr_info*, std::size_t, void* depth) {
    step(*static_cast<int*>(depth));
    asm volatile("");
    return 1;
}
thread_local unsigned in_loader = 0;  // which has its lock meanwhile, that a thread takes at its start
NOINLINE void by_loader(int depth) {
    ++in_loader;
    dl_iterate_phdr(on_file, &depth);
    --in_loader;
}
NOINLINE void in_a_handler(int depth) {
    try {
        if (draw() % 2 == 0) {
            throw depth;  // NOLINT
        }
        throw std::string("an exception");
    } catch (int d) {
        step(d);
    } catch (const std::string&) {
        step(depth);
    }
    asm volatile("");
}
struct on_the_way_out {
    int depth;
    ~on_the_way_out() { step(depth); }
};
NOINLINE void throws(int depth) {
    const on_the_way_out o{depth};
    const on_the_way_out other{0};
    throw 1;
}
NOINLINE void while_unwinding(int depth) {
    try {
        throws(depth);
    } catch (...) {
        asm volatile("");
    }
}
NOINLINE void after_a_jump(int depth) {
    jmp_buf back;
    if (setjmp(back) == 0) {  // NOLINT
        int some[30];
        some[2] = 1;
        asm volatile("" ::"r"(some) : "memory");
        step(0);
        longjmp(back, 1);  // NOLINT
    }
    step(depth);
    asm volatile("");
}
NOINLINE int rest_of_tail_call(int depth) {
    step(depth);
    asm volatile("");
    return depth;
}
NOINLINE int by_tail_call(int depth) {
    return rest_of_tail_call(depth - 1 < 0 ? 0 : depth - 1);
}
/// An allocator that the standard library's own code calls.
class stepping : public std::pmr::memory_resource {
public:
    int depth = 0;

private:
    void* do_allocate(std::size_t bytes, std::size_t) override {
        const int d = depth;
        depth = 0;
        step(d);
        return std::malloc(bytes);
    }
    void do_deallocate(void* p, std::size_t, std::size_t) override {
        step(0);
        std::free(p);
    }
    [[nodiscard]] bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};
NOINLINE void by_container(int depth) {
    stepping r;
    r.depth = depth;
    std::pmr::string text("a text that does not fit into the string itself", &r);
    text += "another one that makes it grow";
    asm volatile("" ::"r"(&text));
}

struct task {
    struct promise_type {
        task get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() noexcept { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        void return_void() {}
        void unhandled_exception() { std::terminate(); }
    };
    std::coroutine_handle<promise_type> handle;
};
task coroutine(int depth) {
    step(depth);
    co_await std::suspend_always{};
    step(0);
}
NOINLINE void by_coroutine(int depth) {
    const task t = coroutine(depth);
    t.handle.resume();
    t.handle.resume();
    t.handle.destroy();
}

constexpr std::size_t stack_bytes = std::size_t{1} << 20;

struct fiber {
    ucontext_t here;
    ucontext_t back;
    int depth;
};
thread_local fiber* current = nullptr;
/// Stacks to be used again. In thread_local objects' destructors fibers run, too.
struct stack_pool {
    void* all[32];
    unsigned count;
};
thread_local stack_pool pool{};

NOINLINE void* take_stack() {
    if (pool.count != 0) {
        return pool.all[--pool.count];
    }
    void* const p = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        std::abort();
    }
    return p;
}
NOINLINE void give_stack(void* p) {
    if (pool.count < 32) {
        pool.all[pool.count++] = p;
    } else {
        munmap(p, stack_bytes);
    }
}
void drop_stacks() {
    while (pool.count != 0) {
        munmap(pool.all[--pool.count], stack_bytes);
    }
}

NOINLINE void fiber_main() {
    step(current->depth);
    asm volatile("");
}
NOINLINE void by_fiber(int depth) {
    fiber f{};
    fiber* const before = current;
    void* const memory = take_stack();
    getcontext(&f.here);
    f.depth = depth;
    f.here.uc_stack.ss_sp = memory;
    f.here.uc_stack.ss_size = stack_bytes;
    f.here.uc_link = &f.back;
    makecontext(&f.here, fiber_main, 0);
    current = &f;
    swapcontext(&f.back, &f.here);
    current = before;
    give_stack(memory);
}

thread_local int signalled = 0;
void on_signal(int) {
    ++in_signal;
    step(signalled);
    --in_signal;
}
NOINLINE void by_signal(int depth) {
    if (in_signal != 0) {
        return step(depth);
    }
    signalled = depth;
    raise(SIGUSR1);
    asm volatile("");
}
NOINLINE void by_signal_on_its_own_stack(int depth) {
    if (in_signal != 0) {
        return step(depth);
    }
    void* const memory = take_stack();
    stack_t mine{};
    stack_t before{};
    mine.ss_sp = memory;
    mine.ss_size = stack_bytes;
    sigaltstack(&mine, &before);
    signalled = depth;
    raise(SIGUSR2);
    sigaltstack(&before, nullptr);
    give_stack(memory);
}

struct at_thread_end {
    ~at_thread_end() { step(2); }
};
pthread_key_t key;
NOINLINE void by_thread(int depth) {
    if (in_loader != 0) {
        return step(depth);
    }
    const std::uint64_t seed = draw();
    std::thread([depth, seed] {
        state = seed | 1U;
        thread_local at_thread_end last;
        asm volatile("" ::"r"(&last));
        pthread_setspecific(key, &key);
        step(depth);
    }).join();
}

void step(int depth) {
    if (depth <= 0) {
        return draw() % 2 == 0 ? leaf() : other_leaf();
    }
    --depth;
    switch (draw() % 32) {
        default: plain(depth); break;
        case 1: twice(depth > 3 ? 3 : depth); break;
        case 2: large_frame(depth); break;
        case 3: grows_its_frame(depth); break;
        case 4: realigns(depth); break;
        case 5: realigns_and_grows(depth); break;
        case 6: passes_on_the_stack(depth); break;
        case 7: by_virtual(depth); break;
        case 8: by_function_object(depth); break;
        case 9: by_variant(depth); break;
        case 10: by_qsort(depth); break;
        case 11: by_bsearch(depth); break;
        case 12: by_tree(depth); break;
        case 13: by_sort(depth); break;
        case 14: by_call_once(depth); break;
        case 15: by_loader(depth); break;
        case 16: in_a_handler(depth); break;
        case 17: while_unwinding(depth); break;
        case 18: after_a_jump(depth); break;
        case 19: by_tail_call(depth); break;
        case 20: by_container(depth); break;
        case 21: by_coroutine(depth); break;
        case 22: by_fiber(depth); break;
        case 23: draw() % 8 == 0 ? by_signal(depth) : plain(depth); break;
        case 24: draw() % 8 == 0 ? by_signal_on_its_own_stack(depth) : plain(depth); break;
        case 25: draw() % 16 == 0 ? by_thread(depth) : plain(depth); break;
    }
    asm volatile("");
}

}  // namespace

int main(int count, char** arguments) {
    const std::uint64_t asked = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 0;
    wanted = asked != 0 ? asked : wanted;
    state = count > 2 ? std::strtoull(arguments[2], nullptr, 10) | 1U : state;
    struct sigaction a {};
    a.sa_handler = on_signal;
    a.sa_flags = SA_NODEFER;
    sigaction(SIGUSR1, &a, nullptr);
    a.sa_flags |= SA_ONSTACK;
    sigaction(SIGUSR2, &a, nullptr);
    pthread_key_create(&key, [](void*) {
        step(1);
        drop_stacks();
    });
    while (total.captures < wanted) {
        step(static_cast<int>(draw() % 14));
    }
    std::printf("%llu captures: %llu differ; %llu through a signal's frame, %llu more by the unwinder\n",
                static_cast<unsigned long long>(total.captures), static_cast<unsigned long long>(total.differences),
                static_cast<unsigned long long>(total.through_signals),
                static_cast<unsigned long long>(total.by_unwinder));
    return total.differences == 0 && total.by_unwinder * 1000 <= total.captures ? 0 : 1;
}
