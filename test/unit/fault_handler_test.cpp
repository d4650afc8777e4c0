// Each fault happens in a forked child: how the child ended and what it wrote are both looked at.

#include <pmr_debug/canary_resource.hpp>
#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/end_of_page_resource.hpp>
#include <pmr_debug/fault_handler.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/temp_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include "metadata/registry.hpp"
#include "support/sanitizers.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <list>
#include <memory_resource>
#include <string>
#include <thread>

#if TEST_SANITIZED
#define SKIP_WHERE_SANITIZERS_OWN_FAULTS() GTEST_SKIP() << "the sanitizer handles SIGSEGV itself"
#else
#define SKIP_WHERE_SANITIZERS_OWN_FAULTS() static_cast<void>(0)
#endif

namespace {

using pmr_debug::fault_handler;
using pmr_debug::trace_id;
using pmr_debug::metadata::address_finding;

struct outcome {
    int signal = 0;  ///< that ended the child
    int status = 0;  ///< exit status, if none did
    std::string text;

    [[nodiscard]] bool says(std::string_view what) const { return text.find(what) != std::string::npos; }
    [[nodiscard]] int times(std::string_view what) const {
        int n = 0;
        for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) {
            ++n;
        }
        return n;
    }
    /// The lines from "  <title>" up to the next title.
    [[nodiscard]] std::string trace(const std::string& title) const {
        const std::size_t start = text.find("\n  " + title);
        if (start == std::string::npos) {
            return {};
        }
        std::size_t end = text.find('\n', start + 1);
        while (end != std::string::npos && text.compare(end, 5, "\n    ") == 0) {
            end = text.find('\n', end + 1);
        }
        return text.substr(start, end - start);
    }
};

/// Calls \p crash in a child, which is not to return.
outcome run(void (*crash)()) {
    int ends[2];
    if (::pipe(ends) != 0) {
        std::abort();
    }
    const pid_t child = ::fork();
    if (child == 0) {
        const rlimit no_core{0, 0};
        ::setrlimit(RLIMIT_CORE, &no_core);
        ::dup2(ends[1], STDERR_FILENO);
        ::close(ends[0]);
        ::close(ends[1]);
        ::alarm(60);
        crash();
        ::_exit(99);
    }
    ::close(ends[1]);
    outcome result;
    char buffer[4096];
    for (ssize_t n = 0; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
        result.text.append(buffer, static_cast<std::size_t>(n));
    }
    ::close(ends[0]);
    int status = 0;
    ::waitpid(child, &status, 0);
    result.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    return result;
}

// The barriers keep the frames: no tail calls, and nothing known about the pointer.
__attribute__((noinline)) char faulting_read(const volatile char* p) {
    asm volatile("" : "+r"(p));
    const char c = *p;
    asm volatile("" : : "r"(c) : "memory");
    return c;
}

__attribute__((noinline)) void faulting_write(volatile char* p) {
    asm volatile("" : "+r"(p));
    *p = 'x';
    asm volatile("" : : : "memory");
}

__attribute__((noinline)) void* allocating_function(std::pmr::memory_resource& r, std::size_t bytes) {
    void* const p = r.allocate(bytes, 16);
    asm volatile("" : : "r"(p) : "memory");
    return p;
}

__attribute__((noinline)) void freeing_function(std::pmr::memory_resource& r, void* p, std::size_t bytes) {
    r.deallocate(p, bytes, 16);
    asm volatile("" : : : "memory");
}

// ---- a resource that says what the test wants about one inaccessible page ------------------------------------------

constexpr std::size_t page = 4096;

struct stage {
    std::uintptr_t base = 0;
    address_finding answer;
};

stage& the_stage() {
    static stage s;
    return s;
}

__attribute__((noinline)) trace_id staged_trace() {
    const trace_id here = pmr_debug::capture_trace(8);
    asm volatile("" : : : "memory");
    return here;
}

char* set_stage(address_finding::what is) {
    void* const p = ::mmap(nullptr, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stage& s = the_stage();
    s.base = reinterpret_cast<std::uintptr_t>(p);
    s.answer.is = is;
    s.answer.block = {.address = static_cast<char*>(p) + 64,
                      .size = 100,
                      .alignment = 16,
                      .serial = 7,
                      .state = pmr_debug::block_state::live,
                      .alloc_thread = 1};
    s.answer.allocated = staged_trace();
    auto* const record = pmr_debug::metadata::register_resource(
        pmr_debug::metadata::resource_kind::other, "staged_resource", "stage", &s, nullptr, &s, trace_id::none);
    pmr_debug::metadata::set_describe_address(record,
                                              [](void* core, std::uintptr_t address, address_finding* out) noexcept {
                                                  const stage& mine = *static_cast<const stage*>(core);
                                                  if (address - mine.base >= page) {
                                                      return false;
                                                  }
                                                  *out = mine.answer;
                                                  return true;
                                              });
    return static_cast<char*>(p);
}

TEST(fault_handler, an_access_behind_a_block_is_an_overrun_by_a_read) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        faulting_read(set_stage(address_finding::what::guard_after) + 64 + 100 + 3);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.text.starts_with("pmr_debug: overrun: 100-byte block 0x")) << o.text;
    EXPECT_TRUE(o.says(" was read, 3 bytes past its end\n")) << o.text;
    EXPECT_TRUE(o.says("\"stage\" (staged_resource #")) << o.text;
    EXPECT_TRUE(o.says(", 100 bytes, alignment 16, serial 7, live\n")) << o.text;
    EXPECT_TRUE(o.says("allocated by 1")) << o.text;
    EXPECT_NE(o.trace("here").find("#0 (anonymous namespace)::faulting_read"), std::string::npos) << o.text;
    EXPECT_NE(o.trace("allocated").find("staged_trace"), std::string::npos) << o.text;
}

TEST(fault_handler, an_access_before_a_block_is_an_underrun_by_a_write) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        faulting_write(set_stage(address_finding::what::guard_before) + 64 - 5);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.text.starts_with("pmr_debug: underrun: 100-byte block 0x")) << o.text;
    EXPECT_TRUE(o.says(" was written, 5 bytes before it\n")) << o.text;
    EXPECT_NE(o.trace("here").find("#0 (anonymous namespace)::faulting_write"), std::string::npos) << o.text;
}

TEST(fault_handler, retired_memory_without_records_is_a_use_after_free) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        char* const p = set_stage(address_finding::what::retired_unit);
        the_stage().answer.block = {};
        faulting_read(p);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.text.starts_with("pmr_debug: use_after_free: freed 0x")) << o.text;
    EXPECT_TRUE(o.says("what was known of them was given up")) << o.text;
}

TEST(fault_handler, other_memory_of_a_resource_is_described) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome live = run([] {
        const fault_handler explain;
        faulting_write(set_stage(address_finding::what::live_block) + 70);
    });
    EXPECT_EQ(live.signal, SIGSEGV);
    EXPECT_TRUE(live.text.starts_with("pmr_debug: fault: 0x")) << live.text;
    EXPECT_TRUE(live.says(" was written: in a live block, whose pages refuse it\n")) << live.text;
    const outcome unused = run([] {
        const fault_handler explain;
        faulting_read(set_stage(address_finding::what::never_used) + 70);
    });
    EXPECT_EQ(unused.signal, SIGSEGV);
    EXPECT_TRUE(unused.says(" was read: memory of the resource that was never handed out\n")) << unused.text;
}

TEST(fault_handler, what_explains_the_fault_comes_before_what_does_not) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        char* const p = set_stage(address_finding::what::freed_block);
        // Constructed later, so asked first.
        static stage above;
        above.base = the_stage().base;
        pmr_debug::metadata::set_describe_address(
            pmr_debug::metadata::register_resource(pmr_debug::metadata::resource_kind::other, "above", "", &above,
                                                   nullptr, &above, trace_id::none),
            [](void*, std::uintptr_t, address_finding* out) noexcept {
                out->is = address_finding::what::live_block;
                return true;
            });
        faulting_read(p + 64);
    });
    EXPECT_TRUE(o.text.starts_with("pmr_debug: use_after_free: ")) << o.text;
    EXPECT_TRUE(o.says("staged_resource")) << o.text;
}

TEST(fault_handler, survives_damaged_records_of_one_resource) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        char* const p = set_stage(address_finding::what::guard_after);
        pmr_debug::metadata::set_describe_address(
            pmr_debug::metadata::register_resource(pmr_debug::metadata::resource_kind::other, "damaged", "", p, nullptr,
                                                   p, trace_id::none),
            [](void* core, std::uintptr_t, address_finding*) noexcept {
                return faulting_read(static_cast<const char*>(core)) == 'x';
            });
        faulting_read(p + 164);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.text.starts_with("pmr_debug: overrun: ")) << o.text;
    EXPECT_EQ(o.times("pmr_debug: "), 1) << o.text;
}

// ---- addresses that are nobody's ---------------------------------------------------------------------------------

TEST(fault_handler, explains_null_pointers) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        faulting_read(reinterpret_cast<const char*>(0x18));
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.text.starts_with("pmr_debug: fault: 0x18 was read: a null pointer, not memory of any")) << o.text;
    EXPECT_NE(o.trace("here").find("faulting_read"), std::string::npos) << o.text;
}

TEST(fault_handler, explains_foreign_addresses) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        void* const p = ::mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        faulting_read(static_cast<char*>(p));  // is fine
        faulting_write(static_cast<char*>(p));
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.says(" was written: not memory of any pmr_debug resource\n")) << o.text;
}

TEST(fault_handler, explains_pointers_read_from_freed_memory) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        faulting_read(reinterpret_cast<const char*>(0xDDDD'DDDD'DDDD'DDDD));
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.says("a pointer that was itself read from freed memory")) << o.text;
}

#if defined(__x86_64__)
constexpr std::uintptr_t of_freed_memory = 0xDDDD'DDDD'DDDD'DDDD;
constexpr std::uintptr_t of_fresh_memory = 0xAAAA'AAAA'AAAA'AAAA;
constexpr std::uintptr_t wild = 0x1234'5678'9ABC'DEF0;

TEST(fault_handler, a_register_that_the_instruction_does_not_use_explains_nothing) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    for (void (*const crash)() :
         {+[] {
              asm volatile("movb (%0), %%al" : : "d"(wild), "c"(of_freed_memory), "S"(of_fresh_memory) : "rax");
          },
          +[] {
              asm volatile("movb %%cl, 8(%0)" : : "d"(wild), "c"(of_freed_memory), "S"(of_fresh_memory) : "rax");
          },
          +[] {
              asm volatile("call *%0" : : "d"(wild), "c"(of_freed_memory), "S"(of_fresh_memory) : "rax");
          }}) {
        static void (*next)();
        next = crash;
        const outcome o = run([] {
            const fault_handler explain;
            next();
        });
        EXPECT_EQ(o.signal, SIGSEGV) << o.text;
        EXPECT_TRUE(o.says("an address that cannot exist")) << o.text;
    }
}

TEST(fault_handler, registers_of_the_address_explain_it) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    // A pointer to what was freed, in each of the ways that instructions have.
    static std::uintptr_t holds = of_freed_memory;
    for (void (*const crash)() :
         {+[] {
              asm volatile("movb (%0), %%al" : : "d"(of_freed_memory + 40) : "rax");
          },
          +[] {
              asm volatile("movq %%rax, 0x1000(%0)" : : "r"(of_freed_memory) : "rax");
          },
          +[] {
              asm volatile("movl (%0,%1,4), %%eax" : : "r"(of_freed_memory), "r"(3L) : "rax");
          },
          +[] {
              asm volatile("movq %0, %%r13\n movzwl 6(%%r13), %%eax" : : "r"(of_freed_memory) : "rax", "r13");
          },
          +[] {
              asm volatile("movups (%0), %%xmm1" : : "r"(of_freed_memory) : "xmm1");
          },
          +[] {
              asm volatile("rep stosb" : : "D"(of_freed_memory), "c"(4L), "a"(0L) : "memory");
          },
          +[] {
              asm volatile("call *%0" : : "r"(of_freed_memory) : "rax");
          },
          +[] {
              asm volatile("call *(%0)" : : "r"(&holds) : "rax");
          },
          +[] {
              asm volatile("push %0\n ret" : : "r"(of_freed_memory) : "rax");
          }}) {
        static void (*next)();
        next = crash;
        const outcome o = run([] {
            const fault_handler explain;
            next();
        });
        EXPECT_EQ(o.signal, SIGSEGV) << o.text;
        EXPECT_TRUE(o.says("a pointer that was itself read from freed memory")) << o.text;
    }
}
#endif

TEST(fault_handler, a_destroyed_resource_whose_memory_is_gone_is_named) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        void* const place = ::mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        auto* const resource = ::new (place) pmr_debug::tracking_resource({.name = "gone"});
        resource->~basic_tracking_resource();
        ::munmap(place, page);
        allocating_function(*static_cast<std::pmr::memory_resource*>(place), 8);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.text.starts_with("pmr_debug: destroyed_resource: \"gone\" was used after its destruction")) << o.text;
    EXPECT_NE(o.trace("here").find("allocating_function"), std::string::npos) << o.text;
}

TEST(fault_handler, a_resource_whose_memory_went_away_before_it_is_named) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        void* const place = ::mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ::new (place) pmr_debug::tracking_resource({.name = "alive"});
        ::munmap(place, page);
        allocating_function(*static_cast<std::pmr::memory_resource*>(place), 8);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.says("was read: the object of a resource, whose memory is gone though it was not destroyed"))
        << o.text;
    EXPECT_TRUE(o.says("\"alive\" (tracking_resource")) << o.text;
}

TEST(fault_handler, a_null_pointer_to_a_resource_is_a_null_pointer) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        std::pmr::memory_resource* nowhere = nullptr;
        asm volatile("" : "+r"(nowhere));
        allocating_function(*nowhere, 8);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.says("was read: a null pointer, not memory of any")) << o.text;
}

TEST(fault_handler, a_resource_whose_object_is_zero_is_no_null_pointer) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        alignas(16) static unsigned char zero[64];
        auto* resource = reinterpret_cast<std::pmr::memory_resource*>(zero);
        asm volatile("" : "+r"(resource));
        allocating_function(*resource, 8);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.says("was read: resource that is not constructed, or was overwritten: its object is zero")) << o.text;
}

TEST(fault_handler, memory_of_a_destroyed_resource_is_told_from_nobodys) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        struct mapper final : std::pmr::memory_resource {
            void* do_allocate(std::size_t, std::size_t) override {
                return ::mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            }
            void do_deallocate(void*, std::size_t, std::size_t) override {}
            [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
                return this == &other;
            }
        } maps;
        const fault_handler explain;
        char* late = nullptr;
        {
            pmr_debug::collecting_handler silent;
            pmr_debug::tracking_resource former(&maps, {.name = "former", .handler = &silent});
            late = static_cast<char*>(allocating_function(former, 100));
        }
        ::munmap(late, page);
        faulting_write(late + 5);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.says("was written: memory that a resource had which is destroyed\n")) << o.text;
    EXPECT_TRUE(o.says("\"former\" (tracking_resource")) << o.text;
    EXPECT_NE(o.trace("allocated").find("allocating_function"), std::string::npos) << o.text;
}

TEST(fault_handler, a_freed_block_that_was_unmapped_is_named_by_its_tracking_resource) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        pmr_debug::tracking_resource resource({.name = "tracked"});
        auto* const p = static_cast<char*>(allocating_function(resource, 1'000'000));
        freeing_function(resource, p, 1'000'000);
        faulting_read(p + 4096);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.text.starts_with("pmr_debug: use_after_free: freed 1000000-byte block")) << o.text;
    EXPECT_TRUE(o.says("\"tracked\" (tracking_resource")) << o.text;
}

TEST(fault_handler, what_was_mapped_again_is_not_the_former_owners) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        pmr_debug::tracking_resource resource({.name = "tracked"});
        auto* const p = static_cast<char*>(allocating_function(resource, 1'000'000));
        freeing_function(resource, p, 1'000'000);
        auto* const start = reinterpret_cast<char*>(reinterpret_cast<std::uintptr_t>(p) & ~std::uintptr_t{page - 1});
        ::mmap(start + page, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        faulting_write(start + page);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.text.starts_with("pmr_debug: fault: ")) << o.text;
    EXPECT_FALSE(o.says("tracked")) << o.text;
}

TEST(fault_handler, shows_who_called_through_a_bad_pointer) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    for (const bool null : {true, false}) {
        const outcome o = null ? run([] {
            const fault_handler explain;
            void (*nowhere)() = nullptr;
            asm volatile("" : "+r"(nowhere));
            nowhere();
            asm volatile("" : : : "memory");
        })
                               : run([] {
                                     const fault_handler explain;
                                     auto nowhere = reinterpret_cast<void (*)()>(0x7000);
                                     asm volatile("" : "+r"(nowhere));
                                     nowhere();
                                     asm volatile("" : : : "memory");
                                 });
        EXPECT_EQ(o.signal, SIGSEGV);
        EXPECT_TRUE(o.says(" was executed: a null pointer")) << o.text;
        EXPECT_NE(o.trace("here").find("shows_who_called_through_a_bad_pointer"), std::string::npos) << o.text;
    }
}

TEST(fault_handler, explains_memory_that_is_gone) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        const int file = ::memfd_create("cut", 0);
        if (::ftruncate(file, page) != 0) {
            return;
        }
        void* const p = ::mmap(nullptr, page, PROT_READ, MAP_SHARED, file, 0);
        if (::ftruncate(file, 0) == 0) {
            faulting_read(static_cast<char*>(p));
        }
    });
    EXPECT_EQ(o.signal, SIGBUS);
    EXPECT_TRUE(o.says(" was read: mapped, but without memory behind it")) << o.text;
}

// Without a condition that it does not know, the compiler warns.
volatile bool for_ever = true;

__attribute__((noinline)) int endless_recursion(int depth) {
    volatile char frame[512];
    frame[0] = static_cast<char>(depth);
    asm volatile("" : : "r"(frame) : "memory");
    const int deeper = for_ever ? endless_recursion(depth + 1) : 0;
    return deeper + frame[0];
}

TEST(fault_handler, explains_stack_overflow) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        endless_recursion(0);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.says(" was written: the thread's stack is used up\n")) << o.text;
    EXPECT_NE(o.trace("here").find("endless_recursion"), std::string::npos) << o.text;
}

TEST(fault_handler, explains_stack_overflow_in_a_thread_that_uses_a_resource) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        pmr_debug::tracking_resource resource;
        std::thread([&resource] {
            freeing_function(resource, allocating_function(resource, 64), 64);
            endless_recursion(0);
        }).join();
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.says("the thread's stack is used up\n")) << o.text;
}

TEST(fault_handler, explains_stack_overflow_in_a_thread_that_was_prepared) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        std::thread([] {
            const trace_id numbered_before = staged_trace();
            static_cast<void>(numbered_before);
            const fault_handler explain;
            std::thread([] {
                fault_handler::prepare_thread();
                endless_recursion(0);
            }).join();
        }).join();
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.says("the thread's stack is used up\n")) << o.text;
}

// ---- real resources ----------------------------------------------------------------------------------------------

TEST(fault_handler, explains_use_of_a_large_freed_block) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const auto crash = [](bool write) {
        const fault_handler explain;
        pmr_debug::page_resource pages;
        pmr_debug::general_purpose_resource resource(&pages, {.name = "large"});
        constexpr std::size_t bytes = 1'000'000;
        auto* const p = static_cast<char*>(allocating_function(resource, bytes));
        freeing_function(resource, p, bytes);
        write ? faulting_write(p + 5000) : static_cast<void>(faulting_read(p + 5000));
    };
    static constexpr auto crash_here = crash;
    const outcome read = run([] { crash_here(false); });
    EXPECT_EQ(read.signal, SIGSEGV);
    EXPECT_TRUE(read.text.starts_with("pmr_debug: use_after_free: freed 1000000-byte block 0x")) << read.text;
    EXPECT_TRUE(read.says(" was read, 5000 bytes into it\n")) << read.text;
    EXPECT_TRUE(read.says("\"large\" (general_purpose_resource #")) << read.text;
    EXPECT_NE(read.trace("here").find("faulting_read"), std::string::npos) << read.text;
    EXPECT_NE(read.trace("allocated by thread").find("allocating_function"), std::string::npos) << read.text;
    EXPECT_NE(read.trace("freed by thread").find("freeing_function"), std::string::npos) << read.text;
    const outcome write = run([] { crash_here(true); });
    EXPECT_EQ(write.signal, SIGSEGV);
    EXPECT_TRUE(write.says(" was written, 5000 bytes into it\n")) << write.text;
}

TEST(fault_handler, explains_use_of_a_small_block_in_a_retired_unit) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        pmr_debug::page_resource pages;
        pmr_debug::basic_general_purpose_resource<pmr_debug::policy{.dead = pmr_debug::dead_unit::trap_at_once}>
            resource(&pages, {.name = "small"});
        constexpr std::size_t bytes = 40;
        static std::array<void*, 5000> blocks;
        for (void*& p : blocks) {
            p = allocating_function(resource, bytes);
        }
        for (void* const p : blocks) {
            freeing_function(resource, p, bytes);
        }
        faulting_read(static_cast<char*>(blocks[3]) + 8);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.text.starts_with("pmr_debug: use_after_free: freed 40-byte block 0x")) << o.text;
    EXPECT_TRUE(o.says(" was read, 8 bytes into it\n")) << o.text;
    EXPECT_NE(o.trace("allocated by thread").find("allocating_function"), std::string::npos) << o.text;
    EXPECT_NE(o.trace("freed by thread").find("freeing_function"), std::string::npos) << o.text;
}

// ---- circumstances -------------------------------------------------------------------------------------------------

TEST(fault_handler, explains_faults_of_any_thread) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        static char* const p = set_stage(address_finding::what::guard_after);
        pmr_debug::tracking_resource numbers_this_thread;
        freeing_function(numbers_this_thread, allocating_function(numbers_this_thread, 64), 64);
        std::thread([] { faulting_write(p + 164); }).join();
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.says(" was written, 0 bytes past its end\n")) << o.text;
    EXPECT_TRUE(o.says("reported by 2, allocated by 1")) << o.text;
}

TEST(fault_handler, the_first_of_two_faults_is_reported) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        static std::atomic<int> ready{0};
        const auto body = [] {
            ready.fetch_add(1);
            while (ready.load() != 2) {
            }
            faulting_write(reinterpret_cast<char*>(0x18));
        };
        std::thread other(body);
        body();
        other.join();
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_EQ(o.times("pmr_debug: "), 1) << o.text;
}

TEST(fault_handler, the_handler_of_before_gets_the_fault_afterwards) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        struct sigaction mine {};
        mine.sa_flags = SA_SIGINFO;
        mine.sa_sigaction = [](int, siginfo_t* info, void*) {
            constexpr std::string_view text = "the handler of before\n";
            const bool same = info->si_addr == reinterpret_cast<void*>(the_stage().base + 164);
            ::_exit(same && ::write(STDERR_FILENO, text.data(), text.size()) > 0 ? 42 : 1);
        };
        ::sigaction(SIGSEGV, &mine, nullptr);
        const fault_handler explain;
        faulting_read(set_stage(address_finding::what::guard_after) + 164);
    });
    EXPECT_EQ(o.status, 42);
    EXPECT_TRUE(o.text.starts_with("pmr_debug: overrun: ")) << o.text;
    EXPECT_TRUE(o.text.ends_with("the handler of before\n")) << o.text;
}

TEST(fault_handler, needs_no_heap) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        char* const p = set_stage(address_finding::what::guard_after);
        // Everything on the heap from here on, with the marks of malloc between the blocks.
        auto* const block = static_cast<char*>(std::malloc(32));
        std::uintptr_t first = reinterpret_cast<std::uintptr_t>(block) - 16;
        asm volatile("" : "+r"(first));
        std::memset(reinterpret_cast<void*>(first), 0x41, reinterpret_cast<std::uintptr_t>(::sbrk(0)) - first);
        faulting_read(p + 164);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.says(" was read, 0 bytes past its end\n")) << o.text;
    EXPECT_NE(o.trace("here").find("faulting_read"), std::string::npos) << o.text;
}

TEST(fault_handler, writes_json_where_wanted) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        pmr_debug::json_handler json(STDERR_FILENO);
        const fault_handler explain({.handler = &json});
        faulting_write(set_stage(address_finding::what::guard_after) + 164);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    const auto line = nlohmann::json::parse(o.text);
    EXPECT_EQ(line["kind"], "overrun");
    EXPECT_EQ(line["access"], "write");
    EXPECT_EQ(line["offset"], 100);
    EXPECT_EQ(line["block"]["size"], 100);
    EXPECT_NE(line["traces"]["here"][0]["function"].get<std::string>().find("faulting_write"), std::string::npos);
    const outcome null = run([] {
        pmr_debug::json_handler json(STDERR_FILENO);
        const fault_handler explain({.handler = &json});
        faulting_read(reinterpret_cast<const char*>(0x18));
    });
    const auto other = nlohmann::json::parse(null.text);
    EXPECT_EQ(other["kind"], "fault");
    EXPECT_EQ(other["access"], "read");
    EXPECT_EQ(other["fault_cause"], "a null pointer, not memory of any pmr_debug resource");
}

TEST(fault_handler, a_handler_that_faults_itself_is_stood_in_for) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        struct broken : pmr_debug::report_handler {
            pmr_debug::action handle(const pmr_debug::report&) noexcept override {
                faulting_read(reinterpret_cast<const char*>(0x30));
                return pmr_debug::action::carry_on;
            }
        } handler;
        const fault_handler explain({.handler = &handler});
        faulting_read(reinterpret_cast<const char*>(0x18));
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.text.starts_with("pmr_debug: fault: 0x18 was read")) << o.text;
}

TEST(fault_handler, a_signal_that_was_sent_is_no_fault) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        ::raise(SIGSEGV);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_EQ(o.text, "");
}

TEST(fault_handler, is_off_after_its_end) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        { const fault_handler explain; }
        faulting_read(reinterpret_cast<const char*>(0x18));
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_EQ(o.text, "");
}

TEST(fault_handler, there_is_one_at_a_time) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    {
        const fault_handler first;
        EXPECT_TRUE(first.installed());
        {
            const fault_handler second;
            EXPECT_FALSE(second.installed());
        }
        struct sigaction now {};
        ::sigaction(SIGSEGV, nullptr, &now);
        EXPECT_NE(now.sa_flags & SA_ONSTACK, 0);
    }
    const fault_handler again;
    EXPECT_TRUE(again.installed());
}

// ---- resources on others that trap ---------------------------------------------------------------------------------

TEST(fault_handler, a_block_is_named_by_the_canary_resource_that_had_it) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        constexpr pmr_debug::policy immediate{.freed = pmr_debug::reuse::immediate};
        constexpr pmr_debug::policy trapping{.dead = pmr_debug::dead_unit::trap_at_once};
        pmr_debug::basic_end_of_page_resource<trapping> fence({.name = "fence"});
        pmr_debug::basic_canary_resource<immediate> guarded(&fence, {.name = "guarded"});
        void* const p = allocating_function(guarded, 100);
        freeing_function(guarded, p, 100);
        faulting_read(static_cast<char*>(p) + 40);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.text.starts_with("pmr_debug: use_after_free: freed 100-byte block 0x")) << o.text;
    EXPECT_TRUE(o.says("\"guarded\" (canary_resource #")) << o.text;
    EXPECT_NE(o.trace("allocated").find("allocating_function"), std::string::npos) << o.text;
    EXPECT_NE(o.trace("freed").find("freeing_function"), std::string::npos) << o.text;
}

TEST(fault_handler, a_block_is_named_by_the_temp_resource_that_released_it) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        constexpr pmr_debug::policy trapping{.dead = pmr_debug::dead_unit::trap_at_once};
        pmr_debug::basic_end_of_page_resource<trapping> fence({.name = "fence"});
        pmr_debug::temp_resource<> arena(&fence, {.name = "arena", .quarantine_bytes = 0});
        void* const p = allocating_function(arena, 100);
        arena.deallocate(p, 100, 16);
        arena.release();
        faulting_write(static_cast<char*>(p) + 99);
    });
    EXPECT_EQ(o.signal, SIGSEGV);
    EXPECT_TRUE(o.text.starts_with("pmr_debug: use_after_free: freed 100-byte block 0x")) << o.text;
    EXPECT_TRUE(o.says("\"arena\" (temp_resource #")) << o.text;
    EXPECT_NE(o.trace("allocated").find("allocating_function"), std::string::npos) << o.text;
}

// ---- aborts --------------------------------------------------------------------------------------------------------

__attribute__((noinline)) void splicing_function(std::pmr::list<int>& to, std::pmr::list<int>& from) {
    to.splice(to.begin(), from);
    asm volatile("" : : "r"(&to) : "memory");
}

__attribute__((noinline)) bool comparing_function(const std::pmr::memory_resource& a,
                                                  const std::pmr::memory_resource& b) {
    const bool equal = a == b;
    asm volatile("" : : "r"(equal) : "memory");
    return equal;
}

struct two_lists {
    pmr_debug::tracking_resource left{{.name = "left"}};
    pmr_debug::canary_resource right{{.name = "right"}};
    std::pmr::list<int> a{{1}, &left};
    std::pmr::list<int> b{{2}, &right};
};

#if defined(__GLIBCXX__)  // libc++ does not look: the wrong resource is told of when a node is freed
TEST(fault_handler, names_both_resources_of_containers_that_may_not_exchange_nodes) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        two_lists lists;
        splicing_function(lists.a, lists.b);
    });
    EXPECT_EQ(o.signal, SIGABRT) << o.text;
    EXPECT_EQ(o.times("pmr_debug: "), 1) << o.text;
    EXPECT_TRUE(
        o.says("pmr_debug: wrong_resource: nodes of a container on \"right\" were to go to one on \"left\", so the "
               "standard library aborts"))
        << o.text;
    EXPECT_TRUE(o.says("  resource   \"left\" (tracking_resource")) << o.text;
    EXPECT_TRUE(o.says("  owner      \"right\" (canary_resource")) << o.text;
    EXPECT_NE(o.trace("here").find("splicing_function"), std::string::npos) << o.text;
    EXPECT_TRUE(o.says("  hint: splice and merge need")) << o.text;
}

TEST(fault_handler, names_what_it_knows_where_nodes_come_from_another_librarys_resource) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        two_lists lists;
        std::pmr::unsynchronized_pool_resource pool;
        std::pmr::list<int> theirs({3}, &pool);
        splicing_function(lists.a, theirs);
    });
    EXPECT_EQ(o.signal, SIGABRT) << o.text;
    EXPECT_TRUE(o.says("wrong_resource: nodes of a container on memory_resource were to go to one on \"left\""))
        << o.text;
}

#endif

TEST(fault_handler, lets_other_aborts_go_their_way_in_silence) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    for (void (*const crash)() : {+[] { std::abort(); },
                                  +[] {
                                      const two_lists lists;
                                      comparing_function(lists.left, lists.right);
                                      std::abort();
                                  },
                                  +[] {
                                      const two_lists lists;
                                      comparing_function(lists.left, lists.right);
                                      ::kill(::getpid(), SIGABRT);
                                      ::pause();
                                  }}) {
        static void (*next)();
        next = crash;
        const outcome o = run([] {
            const fault_handler explain;
            next();
        });
        EXPECT_EQ(o.signal, SIGABRT) << o.text;
        EXPECT_EQ(o.text, "");
    }
}

TEST(fault_handler, hands_an_abort_to_the_handler_of_before) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    for (const bool explained : {false, true}) {
#if !defined(__GLIBCXX__)
        if (explained) {
            break;
        }
#endif
        static bool splices;
        splices = explained;
        const outcome o = run([] {
            ::signal(SIGABRT, [](int) {
                static_cast<void>(!::write(2, "mine\n", 5));
                ::_exit(7);
            });
            const fault_handler explain;
            two_lists lists;
            if (splices) {
                splicing_function(lists.a, lists.b);
            }
            std::abort();
        });
        EXPECT_EQ(o.signal, 0) << o.text;
        EXPECT_EQ(o.status, 7) << o.text;
        EXPECT_EQ(o.says("wrong_resource"), explained) << o.text;
        EXPECT_EQ(o.times("mine\n"), 1) << o.text;
    }
}

TEST(fault_handler, still_explains_a_fault_after_an_abort_that_its_handler_left) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        static sigjmp_buf back;
        ::signal(SIGABRT, [](int) { siglongjmp(back, 1); });
        const fault_handler explain;
        if (sigsetjmp(back, 1) == 0) {
            std::abort();
        }
        faulting_read(nullptr);
    });
    EXPECT_EQ(o.signal, SIGSEGV) << o.text;
    EXPECT_TRUE(o.says("pmr_debug: fault: ")) << o.text;
}

// A handler that was installed after ours, as of a crash reporter, and that passes on what it was told.
struct sigaction passed_on_to {};
void pass_on(int signal, siginfo_t* info, void* context) {
    static_cast<void>(!::write(2, "theirs\n", 7));
    passed_on_to.sa_sigaction(signal, info, context);
}
void install_theirs(int signal) {
    struct sigaction theirs {};
    theirs.sa_sigaction = pass_on;
    theirs.sa_flags = SA_SIGINFO | SA_NODEFER;
    ::sigaction(signal, &theirs, &passed_on_to);
}

TEST(fault_handler, an_abort_that_a_later_handler_passes_on_ends_the_process) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        install_theirs(SIGABRT);
        std::abort();
    });
    EXPECT_EQ(o.signal, SIGABRT) << o.text;
    EXPECT_EQ(o.text, "theirs\n");
    const outcome explained = run([] {
        const fault_handler explain;
        install_theirs(SIGABRT);
        two_lists lists;
        splicing_function(lists.a, lists.b);
    });
    EXPECT_EQ(explained.signal, SIGABRT) << explained.text;
    EXPECT_EQ(explained.times("theirs\n"), 1) << explained.text;
    EXPECT_EQ(explained.times("pmr_debug: wrong_resource: "), 1) << explained.text;
}

TEST(fault_handler, a_sent_signal_that_a_later_handler_passes_on_comes_once) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        const fault_handler explain;
        install_theirs(SIGSEGV);
        ::kill(::getpid(), SIGSEGV);
        ::_exit(3);
    });
    EXPECT_EQ(o.signal, 0) << o.text;
    EXPECT_EQ(o.status, 3) << o.text;
    EXPECT_EQ(o.text, "theirs\n");
}

// Takes its time, so that another thread can come in between.
struct slow_handler final : pmr_debug::report_handler {
    static inline std::atomic<bool> began{false};
    pmr_debug::action handle(const pmr_debug::report&) noexcept override {
        began = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        static_cast<void>(!::write(2, "told\n", 5));
        return pmr_debug::action::carry_on;
    }
};

TEST(fault_handler, an_abort_in_another_thread_waits_until_a_fault_was_told) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run([] {
        static slow_handler slow;
        const fault_handler explain({.handler = &slow});
        std::thread second([] {
            while (!slow_handler::began) {
                std::this_thread::yield();
            }
            std::abort();
        });
        faulting_read(nullptr);
        second.join();
    });
    EXPECT_EQ(o.signal, SIGSEGV) << o.text;
    EXPECT_EQ(o.text, "told\n");
}

}  // namespace
