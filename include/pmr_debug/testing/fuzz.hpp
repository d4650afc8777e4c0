#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Fuzzing of a memory resource: bytes become a program of allocations and frees, and a plain model says what must come
/// of it. For libFuzzer, AFL++, or any other source of bytes; this header needs none of them.
///
/// \verbatim
///   bytes ──> fuzz_input ──> fuzz_session ──> the resource under test ──> fuzz_upstream
///                             │ model: which blocks, where, what they hold       │ accounts, refusals
///                             └──> fuzz_program: what was done so far, printed with a finding, then std::abort
/// \endverbatim
///
/// \code
///   #include <pmr_debug/testing/fuzz.hpp>
///   // The body of LLVMFuzzerTestOneInput:
///   const auto test_one_input = [](const std::uint8_t* data, std::size_t size) {
///       const auto make = [](std::pmr::memory_resource& upstream) {
///           return std::pmr::unsynchronized_pool_resource(&upstream);
///       };
///       // libstdc++'s pools are known not to live through an upstream that refuses.
///       pmr_debug::testing::fuzz_resource(data, size, make, {.upstream_refuses = false});
///       return 0;
///   };
///   const std::uint8_t bytes[] = {0, 200, 17, 3, 90, 1};
///   assert(test_one_input(bytes, sizeof bytes) == 0);
/// \endcode
///
/// Asked of the resource: aligned memory that overlaps no other block; contents that stay until the block is freed, in
/// any order; std::bad_alloc, and nothing else, where the upstream refused or the size cannot be, and nowhere else.
/// Asked of its use of the upstream: each block given back once, as it was asked for, and not written to afterwards;
/// nothing kept at the end; nothing lost when the upstream refuses.

#include <pmr_debug/detail/exceptions.hpp>
#include <pmr_debug/testing/fuzz_parts.hpp>

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory_resource>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace pmr_debug::testing {

/// What a resource is asked for. Sizes in bytes.
struct fuzz_options {
    std::size_t largest = std::size_t{1} << 16;            ///< largest block
    std::size_t largest_alignment = std::size_t{1} << 12;  ///< a power of two
    std::size_t most_blocks = 400;                         ///< live at once
    std::size_t most_operations = 10'000;                  ///< of one program
    bool second_thread = false;    ///< a second thread uses it, too, in turns: never both at once
    bool upstream_refuses = true;  ///< single calls to the upstream end in std::bad_alloc
};

/// Operations carried out by all sessions of the process so far: calls of allocate and deallocate.
inline std::atomic<std::uint64_t> fuzz_operations{0};

// ---- the user
// ---------------------------------------------------------------------------------------------------------

/// A block of the model.
struct fuzz_block {
    std::byte* p = nullptr;
    std::size_t bytes = 0;
    std::size_t alignment = 1;
    std::uint64_t number = 0;  ///< of the allocation, 1-based
    std::uint8_t seed = 0;     ///< of its contents
    unsigned thread = 0;       ///< that allocated it: 0 or 1
};

/// Uses a resource by the bytes of an input, and knows what must come of it. Derived classes add operations, and know
/// more: what is reported, what is refused.
/// Thread safety: one thread; what runs in the second one is its own business.
class fuzz_session {
public:
    fuzz_session(std::pmr::memory_resource& resource, const fuzz_upstream* upstream, fuzz_program& program,
                 const fuzz_options& options)
        : resource_(resource), upstream_(upstream), program_(program), options_(options) {
        blocks_.reserve(options.most_blocks);
    }
    fuzz_session(const fuzz_session&) = delete;
    fuzz_session& operator=(const fuzz_session&) = delete;
    virtual ~fuzz_session() = default;

    /// Effects: carries out the program that \p in spells, until its bytes are used up.
    void run(fuzz_input& in) {
        while (!in.empty() && operations_ < options_.most_operations) {
            turn(in);
            step(in);
        }
        thread_ = 0;
    }
    /// Effects: frees every block, the newest first.
    void free_all() {
        while (!blocks_.empty()) {
            free_block(blocks_.size() - 1);
        }
    }

protected:
    /// What the model says of a request.
    enum class verdict : std::uint8_t { granted, refused, either };

    /// An operation of the derived class's own: a fifth of all.
    virtual void extra(fuzz_input&) {}
    /// Before a request. Returns: whether it must be granted, unless the upstream refuses.
    virtual verdict expect_request(std::size_t, std::size_t) { return verdict::granted; }
    /// Before the live \p b is freed, as \p bytes with \p alignment.
    virtual void expect_free(const fuzz_block& b, std::size_t bytes, std::size_t alignment) {
        static_cast<void>(b), static_cast<void>(bytes), static_cast<void>(alignment);
    }
    /// After a call that granted \p b, before anything is written to it.
    virtual void granted(const fuzz_block&) {}
    /// After a call that freed \p b.
    virtual void freed(const fuzz_block&) {}
    /// After each call, also such that did nothing.
    virtual void settle() {}
    /// The next answer of the upstream, if it is to be something else than memory.
    virtual void plan_upstream(fuzz_input&) {}

    [[noreturn]] void fail(const std::string& what) const { program_.fail(what); }
    void note(const char* what, const fuzz_block& b) {
        program_.note({what, b.number, b.p, b.bytes, b.alignment, thread_});
    }
    void note(const char* what, const void* p = nullptr, std::size_t bytes = 0, std::size_t alignment = 0) {
        program_.note({what, 0, p, bytes, alignment, thread_});
    }
    [[nodiscard]] static std::string request(std::size_t bytes, std::size_t alignment) {
        return std::to_string(bytes) + " bytes with alignment " + std::to_string(alignment);
    }

    /// Effects: asks for a block, which must be granted or refused as the model says. Returns: false if it was refused.
    bool allocate(std::size_t bytes, std::size_t alignment) {
        note("allocate", nullptr, bytes, alignment);
        const verdict expected = expect_request(bytes, alignment);
        const std::uint64_t denials = upstream_ != nullptr ? upstream_->denials() : 0;
        void* const p = ask(bytes, alignment);
        const bool denied = upstream_ != nullptr && upstream_->denials() != denials;
        if (p == nullptr) {
            ++refusals_;
            if (expected == verdict::granted && !denied) {
                fail("refused " + request(bytes, alignment) + ", which nothing was in the way of");
            }
            settle();
            return false;
        }
        if (expected == verdict::refused) {
            fail("gave memory for " + request(bytes, alignment) + ", which should have been refused");
        }
        fuzz_block b{.p = static_cast<std::byte*>(p),
                     .bytes = bytes,
                     .alignment = alignment,
                     .number = ++allocations_,
                     .seed = static_cast<std::uint8_t>(allocations_ * 11 + 1),
                     .thread = thread_};
        if (reinterpret_cast<std::uintptr_t>(p) % alignment != 0) {
            fail("misaligned memory for " + request(bytes, alignment));
        }
        expect_apart(b);
        by_address_[reinterpret_cast<std::uintptr_t>(p)] = blocks_.size();
        blocks_.push_back(b);
        live_bytes_ += bytes;
        total_bytes_ += bytes;
        peak_bytes_ = std::max(peak_bytes_, live_bytes_);
        peak_blocks_ = std::max(peak_blocks_, blocks_.size());
        settle();
        granted(b);
        write(b);
        return true;
    }
    /// Effects: frees block \p index as \p bytes with \p alignment, whatever it was.
    void free_block_as(std::size_t index, std::size_t bytes, std::size_t alignment) {
        const fuzz_block b = blocks_[index];
        expect_contents(b);
        expect_free(b, bytes, alignment);
        note("free", b);
        forget(index);
        deallocate(b.p, bytes, alignment);
        settle();
        freed(b);
    }
    void free_block(std::size_t index) { free_block_as(index, blocks_[index].bytes, blocks_[index].alignment); }

    /// Effects: calls deallocate, with anything, in the thread whose turn it is.
    void deallocate(void* p, std::size_t bytes, std::size_t alignment) {
        call([&] { raw_deallocate(resource_, p, bytes, alignment); });
    }
    /// Returns: null if it was refused by std::bad_alloc.
    void* ask(std::size_t bytes, std::size_t alignment) {
        void* p = nullptr;
        call([&] {
            using pmr_debug::detail::call_end;
            const call_end end = pmr_debug::detail::end_of_call([&] { p = raw_allocate(resource_, bytes, alignment); });
            if (end == call_end::returned && p == nullptr) {
                fail("null for " + request(bytes, alignment));
            } else if (end == call_end::threw_something_else) {
                fail("threw something else than std::bad_alloc for " + request(bytes, alignment));
            }
        });
        return p;
    }
    /// Effects: calls \p f in the thread whose turn it is, and counts an operation.
    template <class F>
    void call(F&& f) {
        ++operations_;
        fuzz_operations.fetch_add(1, std::memory_order_relaxed);
        if (thread_ == 0) {
            f();
        } else {
            fuzz_second_thread::shared().run(f);
        }
    }

    /// Requests that no resource can grant.
    void impossible(fuzz_input& in) {
        static constexpr std::size_t sizes[] = {SIZE_MAX,         SIZE_MAX - 1,       SIZE_MAX - 15,
                                                SIZE_MAX - 4095,  SIZE_MAX / 2 + 2,   SIZE_MAX / 2 + 1,
                                                SIZE_MAX - 65535, SIZE_MAX / 2 - 4096};
        const std::size_t bytes = sizes[in.byte() % 8];
        const std::size_t alignment = in.alignment(options_.largest_alignment);
        note("allocate what cannot be", nullptr, bytes, alignment);
        expect_impossible(bytes, alignment);
        if (ask(bytes, alignment) != nullptr) {
            fail("gave memory for " + request(bytes, alignment));
        }
        ++refusals_;
        settle();
    }
    virtual void expect_impossible(std::size_t, std::size_t) {}

    /// Returns: the live block that holds \p address, or null.
    [[nodiscard]] const fuzz_block* block_at(std::uintptr_t address) const {
        auto i = by_address_.upper_bound(address);
        if (i == by_address_.begin()) {
            return nullptr;
        }
        const fuzz_block& b = blocks_[std::prev(i)->second];
        return address - std::prev(i)->first < std::max<std::size_t>(b.bytes, 1) ? &b : nullptr;
    }

    void expect_contents(const fuzz_block& b) const {
        each_place(b, [&](std::size_t i) {
            if (b.p[i] != content(b, i)) {
                fail("byte " + std::to_string(i) + " of block #" + std::to_string(b.number) + " (" +
                     request(b.bytes, b.alignment) + ") changed while it was in use");
            }
        });
    }
    void expect_all_contents() const {
        for (const fuzz_block& b : blocks_) {
            expect_contents(b);
        }
    }
    /// Effects: forgets a block that is gone.
    void forget(std::size_t index) {
        live_bytes_ -= blocks_[index].bytes;
        by_address_.erase(reinterpret_cast<std::uintptr_t>(blocks_[index].p));
        if (index + 1 != blocks_.size()) {
            blocks_[index] = blocks_.back();
            by_address_[reinterpret_cast<std::uintptr_t>(blocks_[index].p)] = index;
        }
        blocks_.pop_back();
    }
    static void write(const fuzz_block& b) {
        each_place(b, [&](std::size_t i) { b.p[i] = content(b, i); });
    }

    std::pmr::memory_resource& resource_;
    const fuzz_upstream* upstream_;
    fuzz_program& program_;
    fuzz_options options_;
    std::vector<fuzz_block> blocks_;                    // live
    std::map<std::uintptr_t, std::size_t> by_address_;  // their indices
    unsigned thread_ = 0;                               // whose turn it is
    std::uint64_t allocations_ = 0;
    std::uint64_t refusals_ = 0;
    std::size_t live_bytes_ = 0;
    std::size_t total_bytes_ = 0;
    std::size_t peak_bytes_ = 0;
    std::size_t peak_blocks_ = 0;
    std::size_t operations_ = 0;

private:
    // The standard library declares some arguments impossible. They are hidden from compiler and sanitizer.
    __attribute__((noinline, no_sanitize("undefined"))) static void* raw_allocate(std::pmr::memory_resource& r,
                                                                                  std::size_t bytes,
                                                                                  std::size_t alignment) {
        volatile std::size_t hidden_bytes = bytes;
        volatile std::size_t hidden_alignment = alignment;
        void* p = r.allocate(hidden_bytes, hidden_alignment);
        asm volatile("" : "+r"(p) : : "memory");
        return p;
    }
    __attribute__((noinline, no_sanitize("undefined"))) static void raw_deallocate(std::pmr::memory_resource& r,
                                                                                   void* p, std::size_t bytes,
                                                                                   std::size_t alignment) {
        void* volatile hidden = p;
        r.deallocate(hidden, bytes, alignment);
        asm volatile("" : : : "memory");
    }

    static std::byte content(const fuzz_block& b, std::size_t i) noexcept {
        return static_cast<std::byte>(b.seed + i * 7);
    }
    /// Effects: visits the bytes whose contents are kept: all of a small block; the ends of a large one, and some in
    /// between.
    template <class Visit>
    static void each_place(const fuzz_block& b, Visit&& visit) {
        constexpr std::size_t end = 256;
        if (b.bytes <= 2 * end) {
            for (std::size_t i = 0; i < b.bytes; ++i) {
                visit(i);
            }
            return;
        }
        for (std::size_t i = 0; i < end; ++i) {
            visit(i);
            visit(b.bytes - 1 - i);
        }
        for (std::size_t i = end; i < b.bytes - end; i += 1021) {
            visit(i);
        }
    }

    void expect_apart(const fuzz_block& b) const {
        const auto at = reinterpret_cast<std::uintptr_t>(b.p);
        const auto above = by_address_.lower_bound(at);
        bool apart = above == by_address_.end() || (above->first != at && above->first - at >= b.bytes);
        if (above != by_address_.begin()) {
            const auto below = std::prev(above);
            apart = apart && at - below->first >= blocks_[below->second].bytes;
        }
        if (!apart) {
            fail("memory that is in use for " + request(b.bytes, b.alignment));
        }
    }

    void turn(fuzz_input&) {
        if (turns_left_ != 0 && --turns_left_ == 0) {
            thread_ = 0;
        }
    }

    void step(fuzz_input& in) {
        const std::uint8_t op = in.byte();
        if (op < 72) {
            take(in);
        } else if (op < 124) {
            free_some(in);
        } else if (op < 140) {
            const std::size_t bytes = in.block_size(options_.largest);
            const std::size_t alignment = in.alignment(64);
            for (std::size_t n = 1 + in.byte() % 64; n != 0 && blocks_.size() < options_.most_blocks; --n) {
                allocate(bytes, alignment);
            }
        } else if (op < 156) {
            free_many(in);
        } else if (op < 176) {
            const std::size_t bytes = in.block_size(options_.largest < 4096 ? options_.largest : 4096);
            for (std::size_t n = 1 + in.byte() % 128; n != 0; --n) {
                if (allocate(bytes, 8)) {
                    free_block(blocks_.size() - 1);
                }
            }
        } else if (op < 184) {
            expect_all_contents();
            for (fuzz_block& b : blocks_) {
                ++b.seed;
                write(b);
            }
        } else if (op < 192) {
            if (options_.second_thread) {
                thread_ = 1;
                turns_left_ = 1 + in.byte() % 6;
            }
        } else if (op < 200) {
            if (options_.upstream_refuses) {
                plan_upstream(in);
            }
        } else if (op < 204) {
            impossible(in);
        } else {
            extra(in);
        }
    }

    void take(fuzz_input& in) {
        const std::size_t bytes = in.block_size(options_.largest);
        const std::size_t alignment = in.alignment(options_.largest_alignment);
        if (blocks_.size() < options_.most_blocks) {
            allocate(bytes, alignment);
        }
    }
    void free_some(fuzz_input& in) {
        const std::size_t which = in.byte();
        if (!blocks_.empty()) {
            free_block(which == 255 ? blocks_.size() - 1 : which % blocks_.size());
        }
    }
    void free_many(fuzz_input& in) {
        const std::size_t how = in.byte();
        std::size_t n = 1 + in.byte() % 128;
        for (std::size_t i = how / 4; n != 0 && !blocks_.empty(); --n, i += 7) {
            free_block(how % 4 == 0 ? blocks_.size() - 1 : how % 4 == 1 ? 0 : i % blocks_.size());
        }
    }

    std::size_t turns_left_ = 0;
};

/// Uses what \p make makes, over an upstream that keeps accounts, by the program that the bytes spell.
///
/// \p make(upstream) returns the resource, by value or as a smart pointer; it must not keep memory beyond its life, and
/// may throw std::bad_alloc. A finding ends the process, after a line that says what, and the steps that led there.
template <class Make>
void fuzz_resource(const std::uint8_t* data, std::size_t size, Make&& make, const fuzz_options& options = {}) {
    class session final : public fuzz_session {
    public:
        session(std::pmr::memory_resource& r, fuzz_upstream& upstream, fuzz_program& program, const fuzz_options& o)
            : fuzz_session(r, &upstream, program, o), answers_(upstream) {}

    private:
        void plan_upstream(fuzz_input& in) override {
            answers_.plan(in.byte() % 8, fuzz_upstream::answer::refusal);
            note("the upstream will refuse");
        }
        fuzz_upstream& answers_;
    };
    fuzz_program program("a resource of the caller's");
    fuzz_upstream upstream(program);
    fuzz_input in(data, size);
    upstream.keep_all(in.byte() % 2 == 0);
    auto made = make(static_cast<std::pmr::memory_resource&>(upstream));
    std::pmr::memory_resource* resource = nullptr;
    if constexpr (requires { static_cast<std::pmr::memory_resource&>(made); }) {
        resource = &made;
    } else {
        resource = &*made;
    }
    session s(*resource, upstream, program, options);
    s.run(in);
    s.free_all();
}

}  // namespace pmr_debug::testing

#endif  // PMR_DEBUG_LANGUAGE
