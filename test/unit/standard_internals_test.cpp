// Which functions of the standard library a printed trace leaves out, and that it says so.

#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/general_purpose_resource.hpp>

#include "stack/names.hpp"

#include <gtest/gtest.h>

#include <memory_resource>
#include <string>
#include <string_view>
#include <vector>

namespace {

using pmr_debug::stack::is_library_function;
using pmr_debug::stack::is_standard_internal;

TEST(StandardInternals, AllocatorPlumbingAndReservedNamesAreInternal) {
    EXPECT_TRUE(is_standard_internal("std::pmr::polymorphic_allocator<int>::allocate(unsigned long)"));
    EXPECT_TRUE(is_standard_internal("std::allocator_traits<std::pmr::polymorphic_allocator<int> >::allocate(int)"));
    EXPECT_TRUE(is_standard_internal("std::_Vector_base<int, std::allocator<int> >::_M_allocate(unsigned long)"));
    EXPECT_TRUE(is_standard_internal("void std::vector<int>::_M_realloc_insert<int>(int&&)"));
    EXPECT_TRUE(is_standard_internal("std::__cxx11::basic_string<char>::_M_dispose()"));
}

TEST(StandardInternals, ThoseOfLibcxxAreKnownToo) {
    EXPECT_TRUE(
        is_standard_internal("std::__1::pmr::polymorphic_allocator<int>::allocate[abi:ne190107](unsigned long)"));
    EXPECT_TRUE(is_standard_internal(
        "int* std::__1::vector<int, std::__1::pmr::polymorphic_allocator<int> >::__push_back_slow_path<int>(int&&)"));
    EXPECT_TRUE(is_standard_internal("std::__1::__split_buffer<int, A&>::__split_buffer(unsigned long, A&)"));
    EXPECT_TRUE(is_standard_internal("std::__1::allocator_traits<A>::allocate[abi:v160006](A&, unsigned long)"));
    EXPECT_FALSE(
        is_standard_internal("std::__1::vector<int, std::__1::allocator<int> >::push_back[abi:ne190107](int&&)"));
    EXPECT_FALSE(
        is_standard_internal("std::__1::basic_string<char, std::__1::char_traits<char> >::append(char const*)"));
    EXPECT_TRUE(
        is_library_function("std::__1::pmr::memory_resource::allocate[abi:ne190107](unsigned long, unsigned long)"));
    EXPECT_TRUE(is_library_function("std::pmr::memory_resource::deallocate(void*, unsigned long, unsigned long)"));
    EXPECT_FALSE(is_library_function("std::__1::pmr::memory_resource::is_equal[abi:ne190107](A const&) const"));
    EXPECT_FALSE(is_library_function("std::pmr::memory_resource::allocate_something(int)"));
}

TEST(StandardInternals, WhatPeopleCallIsNot) {
    EXPECT_FALSE(is_standard_internal("std::vector<int, std::allocator<int> >::push_back(int&&)"));
    EXPECT_FALSE(is_standard_internal("std::__cxx11::basic_string<char>::append(char const*)"));
    EXPECT_FALSE(is_standard_internal("void std::pmr::polymorphic_allocator<std::byte>::delete_object<int>(int*)"));
    EXPECT_FALSE(is_standard_internal("main"));
    EXPECT_FALSE(is_standard_internal("void game::load<std::_Vector_base<int> >(std::_List_iterator<int>)"));
    EXPECT_FALSE(is_standard_internal(""));
}

[[gnu::noinline]] void leave_a_vector_behind(std::pmr::memory_resource& memory) {
    // Storage that is never destroyed: the vector's elements leak.
    alignas(std::pmr::vector<int>) static std::byte storage[sizeof(std::pmr::vector<int>)];
    auto* const leaked = ::new (static_cast<void*>(storage)) std::pmr::vector<int>(&memory);
    leaked->push_back(1);
}

TEST(StandardInternals, APrintedTraceLeavesThemOutAndSaysHowMany) {
    pmr_debug::collecting_handler errors;
    {
        // Deep enough that a build without inlining reaches the caller, too.
        pmr_debug::basic_general_purpose_resource<pmr_debug::policy{.alloc_frames = 32}> heap({.handler = &errors});
        leave_a_vector_behind(heap);
    }
    ASSERT_EQ(errors.count(pmr_debug::error_kind::leak), 1U);
    const std::string_view text = errors.back().text;
    EXPECT_EQ(text.find("_M_"), std::string_view::npos) << text;
    EXPECT_NE(text.find("push_back"), std::string_view::npos) << text;
    EXPECT_NE(text.find("leave_a_vector_behind"), std::string_view::npos) << text;
    EXPECT_NE(text.find("inside the standard library not shown"), std::string_view::npos) << text;
}

}  // namespace
